"""Reading recipes: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from wuneng.errors import RecipeError
from wuneng.recipe import HubDataset, Recipe, TextData, TrainedTokenizer, load_recipe

MINIMAL = """
data: {kind: synthetic, tasks: [{task: recall}]}
training: {steps: 10, sequence_length: 64}
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def _write(text: str, name: str = "small.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return _write


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


def test_defaults(write: Write) -> None:
    recipe = load_recipe(write(MINIMAL))
    assert recipe.name == "small"
    assert list(recipe.arms) == ["wuneng", "mha", "mha-shift"]
    assert recipe.reference_arm == "wuneng"
    assert recipe.seeds == [0]
    assert recipe.training.tokens_per_step == 16 * 64


def test_numbers_as_people_write_them(write: Write) -> None:
    recipe = load_recipe(
        write(
            "data: {kind: synthetic, tasks: [{task: recall}]}\n"
            "model: {max_position_embeddings: 8k, rope_theta: 1e6}\n"
            "training: {tokens: 1M, sequence_length: 1k, learning_rate: 1e-3, eps: 1e-8}\n"
        )
    )
    assert recipe.model.max_position_embeddings == 8192
    assert recipe.model.rope_theta == 1e6
    assert recipe.training.learning_rate == 1e-3
    assert recipe.training.total_steps == 1024 * 1024 // (16 * 1024)
    assert recipe.training.total_tokens == 1024 * 1024


def test_tokens_are_rounded_up_to_whole_steps(write: Write) -> None:
    recipe = load_recipe(write(MINIMAL), ["training={tokens: 1025, sequence_length: 64}"])
    assert recipe.training.total_steps == 2


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("model: {num_state_head: 2}", 1, "model.num_state_head is not a known field. "
         "Did you mean 'num_state_heads'?"),
        ("modle: {}", 1, "modle is not a known field. Did you mean 'model'?"),
        ("model:\n  cross_head: gate", 2, "model.cross_head: expected 'additive', 'concat', "
         "'gated' or 'none', got 'gate'. Did you mean 'gated'?"),
        ("model: {hidden_size: wide}", 1, "model.hidden_size: expected a whole number, possibly "
         "with the suffix k, M or G (powers of 1024), got 'wide'"),
        ("model: {hidden_size: true}", 1, "got True"),
        ("model: {hidden_size: 0}", 1, "model.hidden_size: expected 1 or more, got 0"),
        ("model: {hidden_size: 64.5}", 1, "got 64.5"),
        ("model: {rope_theta: .nan}", 1, "model.rope_theta: expected a number, got nan"),
        ("model: {qk_norm: 1}", 1, "model.qk_norm: expected true or false, got 1"),
        ("model: 3", 1, "model: expected a mapping, got 3"),
        ("model: {token_shift_on: rkx}", 1, "model.token_shift_on: expected text that matches"),
        ("model: {state_a_max: 3}", 1, "model.state_a_max: expected 2.0 or less, got 3"),
        ("device: gpu", 1, "device: expected auto, cpu, cuda, cuda:N or mps, got 'gpu'"),
        ("seed: -1", 1, "seed: expected a whole number from 0, or a list of different ones"),
        ("seed: [1, 1]", 1, "seed: expected a whole number from 0, or a list of different ones"),
        ("loggers: [tensorbord]", 1, "Did you mean 'tensorboard'?"),
        ("name: ../x", 1, "name: expected a name of letters, digits"),
        ("name: latest", 1, "name: expected a name of letters, digits"),
        ("arms: {}", 1, "arms: expected at least 1 entries"),
        (f"arms: [{', '.join(f'a{i}' for i in range(101))}]", 1, "arms: expected at most 100"),
        ("arms:\n  a/b: {model: {}}", 2, "expected a name of letters, digits"),
        ("arms:\n  mha:\n    training: {learning_rat: 1}", 3,
         "arms.mha.training.learning_rat is not a known field. Did you mean 'learning_rate'?"),
        ("arms:\n  mha:\n    training: {steps: 5}", 3,
         "arms.mha.training.steps is not a known field"),
        ("arms:\n  mha:\n    matsch: flops", 3, "Did you mean 'match'?"),
        ("evaluation: {length_multiples: []}", 1, "expected at least 1 entries, got []"),
    ],
)  # fmt: skip
def test_mistakes_are_named(write: Write, text: str, line: int, message: str) -> None:
    path = write(text + MINIMAL)
    told = refused(path)
    assert told.startswith(f"{path}, line {line}: ")
    assert message in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{kind: txt}", "data: expected a mapping with kind: text or kind: synthetic"),
        ("{tasks: []}", "data: expected a mapping with kind: text or kind: synthetic"),
        ("{kind: text}", "data.train is required"),
        ("{kind: text, train: []}", "data.train: expected at least 1 entries, got []"),
        ("{kind: text, train: ''}", "data.train.0: expected text that is not empty, got ''"),
        ("{kind: text, train: {datset: x}}",
         "data.train.datset is not a known field. Did you mean 'dataset'?"),
        ("{kind: text, train: a, tokenizer: {train_bpe: 12}}",
         "data.tokenizer.train_bpe: expected 257 or more, got 12"),
        ("{kind: text, train: a, tasks: []}", "data.tasks is not a known field"),
        ("{kind: text, train: a, validation_fraction: 1}", "expected a value below 1.0, got 1"),
        ("{kind: synthetic, tasks: []}", "data.tasks: expected at least 1 entries, got []"),
        ("{kind: synthetic, tasks: [{task: recal}]}",
         "data.tasks.0: expected a task with task: recall, state_tracking, compose, boxes, chain, "
         "brackets, selective_copy, induction, needle, functions or addition, got "
         "{'task': 'recal'}. Did you mean 'recall'?"),
        ("{kind: synthetic, tasks: [{task: recall, pair: 3}]}",
         "data.tasks.0.pair is not a known field. Did you mean 'pairs'?"),
        ("{kind: synthetic, tasks: [{task: recall, pairs: 33}]}",
         "data.tasks.0.pairs: expected at most as many as keys (32), got 33"),
        ("{kind: synthetic, tasks: [{task: recall, rewrites: 9}]}",
         "data.tasks.0.rewrites: expected at most as many as pairs (8), got 9"),
        ("{kind: synthetic, tasks: [{task: recall}, {task: recall}]}",
         "data.tasks.1: expected a name of its own, got 'recall' as tasks.0 has"),
        ("{kind: synthetic, tasks: [{task: state_tracking, group: s4}]}",
         "data.tasks.0.group: expected parity, s3, s5 or mod_N with N of 2 or more, got 's4'"),
        ("{kind: synthetic, tasks: [{task: state_tracking, group: mod_1}]}", "got 'mod_1'"),
        ("{kind: synthetic, tasks: [{task: state_tracking, curriculum: "
         "[{until: 0.5, scored: 8}, {until: 0.2, scored: 16}]}]}",
         "data.tasks.0.curriculum: expected rising values of until"),
    ],
)  # fmt: skip
def test_mistakes_in_data_are_named(write: Write, data: str, message: str) -> None:
    path = write(f"training: {{steps: 1}}\ndata: {data}\n")
    told = refused(path)
    assert told.startswith(f"{path}, line 2: ")
    assert message in told


def test_every_mistake_is_told_at_once(write: Write) -> None:
    told = refused(write("modle: {}\nmodel: {norm: x}\ntraining: {precision: 8}\n"))
    assert [line.partition(": ")[2].split()[0] for line in told.splitlines()] == [
        "model.norm:", "data", "training.precision:", "modle",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nb:\n\tc: 1\n", 3, "a tab; YAML is indented with blanks"),
        ("model: [1\n", 2, "not valid YAML"),
        ("model: {a: 1}}\n", 1, "not valid YAML"),
        ("seed: 1\nmodel: {}\nseed: 2\n", 3, "seed is given twice (first on line 1)"),
        ("model:\n  norm: a\n  norm: b\n", 3, "model.norm is given twice (first on line 2)"),
        ("seed: 1\n---\nseed: 2\n", 2, "not valid YAML"),
        ("model: &a {x: *a}\n", 1, "an alias that contains itself"),
        ("seed: \x07\n", 1, "special characters are not allowed"),
        ("[1]: 2\n", 1, "expected a name as key, got a collection"),
        ("yes: 2\n", 1, "expected a name as key, got 'yes'; quote it"),
    ],
)
def test_broken_yaml_is_told_with_its_line(
    write: Write, text: str, line: int, message: str
) -> None:
    path = write(text)
    told = refused(path)
    assert told.startswith(f"{path}, line {line}: "), told
    assert message in told


@pytest.mark.parametrize(("text", "got"), [("", "nothing"), ("# x\n", "nothing"), ("- 1", "list")])
def test_a_recipe_is_a_mapping(write: Write, text: str, got: str) -> None:
    assert refused(write(text)).endswith(
        f"expected a mapping with model, data and training, got {got}"
    )


def test_files_that_cannot_be_read(write: Write, tmp_path: Path) -> None:
    write(MINIMAL)
    assert "Did you mean" in refused(tmp_path / "smal.yaml")
    assert refused(tmp_path).endswith("is a directory, expected a YAML file; it holds small.yaml")
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"seed: 1\ndescription: caf\xe9\n")
    assert refused(latin) == f"{latin}, line 2: expected UTF-8 text, got other bytes"


def test_merge_keys_work(write: Write) -> None:
    path = write(
        "arms:\n  a: {model: &m {num_state_heads: 4, snapshots: 1}}\n"
        "  b: {model: {<<: *m, snapshots: 2}}" + MINIMAL
    )
    recipe = load_recipe(path)
    assert recipe.arm_model("b").num_state_heads == 4
    assert recipe.arm_model("b").snapshots == 2


def test_forms_of_text_data(write: Write) -> None:
    text = "data: {kind: text, train: %s, tokenizer: %s}\ntraining: {steps: 1}\n"
    plain = load_recipe(write(text % ("a.txt", "bytes"))).data
    assert isinstance(plain, TextData)
    assert plain.train == ["a.txt"]
    full = load_recipe(write(text % ("{dataset: x, streaming: true}", "{train_bpe: 1k}"))).data
    assert isinstance(full, TextData)
    assert full.train == HubDataset(dataset="x", streaming=True)
    assert full.tokenizer == TrainedTokenizer(train_bpe=1024)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ("{}", "training: expected either steps or tokens, got neither"),
        ("{steps: 1, tokens: 1}", "training: expected either steps or tokens, got both"),
        ("{steps: 5, batch_size: 10, micro_batch_size: 4}",
         "training.micro_batch_size: expected a divisor of batch_size (10), got 4"),
        ("{steps: 5, warmup_steps: 5}",
         "training.warmup_steps: expected fewer than the 5 steps of the run, got 5"),
        ("{steps: 5, cuda_graph: true, activation_checkpointing: 2}",
         "training.cuda_graph: expected false where activation_checkpointing is 2, got true"),
        ("{steps: 5, cuda_graph: true, precision: fp16}",
         "training.cuda_graph: expected false where precision is fp16, got true"),
        ("{steps: 5, sequence_length: 4k}",
         "model.max_position_embeddings: expected at least training.sequence_length (4096), "
         "got 2048 (arm wuneng, mha, mha-shift)"),
    ],
)  # fmt: skip
def test_contradictions_in_training(write: Write, training: str, message: str) -> None:
    path = write(f"data: {{kind: synthetic, tasks: [{{task: recall}}]}}\ntraining: {training}\n")
    told = refused(path)
    assert message in told
    assert len(told.splitlines()) == 1


def test_reading_a_recipe_imports_nothing_heavy() -> None:
    code = (
        "import sys, wuneng_cli, wuneng.recipe, wuneng.records, wuneng.device\n"
        "heavy = {'torch', 'transformers', 'numpy', 'datasets', 'rich', 'lm_eval'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('seed: 1\nname: "\\UFFFFFFFF"\n', 2),
        ('seed: 1\nname: "\\U00110000"\n', 2),
        ("%YAML " + "1" * 5000 + ".1\n---\nseed: 1\n", 1),
        ("%YAML 1." + "1" * 5000 + "\n---\nseed: 1\n", 1),
    ],
    ids=["no C int", "no character", "major version", "minor version"],
)
def test_what_pyyaml_does_not_check_is_told_with_its_line(
    write: Write, text: str, line: int
) -> None:
    path = write(text)
    assert refused(path).startswith(f"{path}, line {line}: not valid YAML: ")


def test_a_recipe_can_be_made_in_python() -> None:
    recipe = Recipe(
        data={"kind": "synthetic", "tasks": [{"task": "recall"}]},  # type: ignore[arg-type]
        training={"steps": 3},  # type: ignore[arg-type]
    )
    assert recipe.arm_training("mha").steps == 3
