"""Logits that are NaN or infinite stop everything that would make a score or a token of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from wuneng.errors import NonFiniteError
from wuneng.evaluate.generation import Sampling, generate_text
from wuneng.evaluate.harness import run_tasks
from wuneng.evaluate.harness_model import HarnessModel
from wuneng.evaluate.perplexity import open_validation, run_validation
from wuneng.evaluate.task_loading import load_tasks
from wuneng.model.finite import FiniteScores, NotFinite, all_finite, first_layer_not_finite
from wuneng.records import RunDirectory

Load = Callable[..., Any]
Make = Callable[..., Path]
NAN, INF = float("nan"), float("inf")
RARE = ord("Z")  # occurs in one item only


@torch.no_grad()
def spoil(model: Any, name: str, value: float, row: int | None = None) -> None:
    weight = model.get_parameter(name)
    weight[... if row is None else row].fill_(value)


def arc_with_a_rare_byte(make_files: Make, make_rows: Any, at: int) -> Path:
    rows = make_rows(8)["arc_easy_test.jsonl"]
    rows[at]["question"] = "Which animal is called Z?"
    name = "arc_easy_test.jsonl"
    return make_files(8, name, changes={name: rows})


def run(loaded: Any, directory: Path, tmp_path: Path, names: list[str], **options: Any) -> Any:
    workspace = tmp_path / "work"
    workspace.mkdir()
    tasks = load_tasks(names, data_dir=directory, workspace=workspace, num_fewshot=0)
    return run_tasks(HarnessModel(loaded, **options), tasks)


def test_the_check_knows_every_kind() -> None:
    good = torch.randn(3, 5, 7)
    assert all_finite(good)
    assert all_finite(torch.full((4, 4), 3e38)), "a sum that overflows is not an infinite logit"
    for value in (NAN, INF, -INF):
        bad = good.clone()
        bad[1, 2, 3] = value
        assert not all_finite(bad)
        assert not all_finite(bad.half())


def test_a_forbidden_token_is_no_failure() -> None:
    scores = torch.zeros(2, 5)
    scores[:, 3] = -INF
    ids = torch.tensor([[1, 2], [3, 4]])
    assert FiniteScores()(ids, scores) is scores
    for value in (NAN, INF):
        scores[1, 0] = value
        with pytest.raises(NotFinite) as found:
            FiniteScores()(ids, scores)
        assert (found.value.row, found.value.read.tolist()) == (1, [3, 4])


@pytest.mark.parametrize("kind", ["llama", "wuneng"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_minus_infinity_of_the_model_is_no_forbidden_token(
    load: Load, tiny: Make, kind: str, temperature: float
) -> None:
    """No token is chosen for it, so that its text would look like any other."""
    loaded = load(tiny(kind))
    sampling = Sampling(max_tokens=3, temperature=temperature, seed=1)
    generate_text(loaded, "cats", sampling)

    def minus(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output.index_fill(-1, torch.tensor([RARE]), -INF)

    loaded.model.get_output_embeddings().register_forward_hook(minus)
    with pytest.raises(NonFiniteError, match="--prompt: after 0 new tokens"):
        generate_text(loaded, "cats", sampling)
    assert len(loaded.model._forward_hooks) == 0


@pytest.mark.parametrize("kind", ["llama", "wuneng"])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("value", [NAN, INF])
def test_the_item_and_the_layer_are_named(
    load: Load, tiny: Make, make_files: Make, make_rows: Any, tmp_path: Path,
    kind: str, share: bool, value: float,
) -> None:  # fmt: skip
    untied = {} if kind == "llama" else {"tie_word_embeddings": False}
    loaded = load(tiny(kind, **untied))
    spoil(loaded.model, "model.embed_tokens.weight", value, RARE)
    files = arc_with_a_rare_byte(make_files, make_rows, at=5)
    message = r"arc_easy, item 5: .*is model.embed_tokens \(its weight is not finite\)"
    with pytest.raises(NonFiniteError, match=message):
        run(loaded, files, tmp_path, ["arc_easy"], share=share, batch_size=4)


@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "lm_head.weight"])
def test_a_weight_deep_inside(load: Load, tiny: Make, name: str) -> None:
    loaded = load(tiny("llama"))
    spoil(loaded.model, name, NAN, 3)
    layer = name.removesuffix(".weight")
    with pytest.raises(NonFiniteError, match=rf"after 0 new tokens: .*is {layer} \(its weight"):
        generate_text(loaded, "cats", Sampling(max_tokens=4, temperature=0))
    ids = torch.tensor([[5, 6]])
    assert first_layer_not_finite(loaded.model, lambda: loaded.model(ids)) == layer


def test_a_block_of_ours(load: Load, tiny: Make) -> None:
    loaded = load(tiny("wuneng"))
    parameters = dict(loaded.model.named_parameters())
    name = next(n for n in parameters if n.startswith("model.layers.1.") and "state" in n)
    spoil(loaded.model, name, NAN)
    with pytest.raises(NonFiniteError, match=r"first layer that is not finite is model.layers.1\."):
        generate_text(loaded, "cats", Sampling(max_tokens=4, temperature=0))


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_generation_stops_where_it_becomes_nan(load: Load, tiny: Make, temperature: float) -> None:
    """Fine for the prompt; the token that it writes next is the one without a number."""
    loaded = load(tiny("llama"))
    sampling = Sampling(max_tokens=8, temperature=temperature, top_p=1e-6, seed=1)
    prompt = torch.tensor([loaded.tokenizer.encode("cats")])
    first = int(loaded.model(prompt).logits[0, -1].argmax())
    spoil(loaded.model, "model.embed_tokens.weight", NAN, first)
    with pytest.raises(NonFiniteError, match="--prompt: after 1 new tokens"):
        generate_text(loaded, "cats", sampling)


def test_generation_tasks(load: Load, tiny: Make, make_files: Make, make_rows: Any,
                          tmp_path: Path) -> None:  # fmt: skip
    loaded = load(tiny("llama"))
    spoil(loaded.model, "model.embed_tokens.weight", NAN, RARE)
    spoil(loaded.model, "lm_head.weight", 0.0, RARE)  # what it writes itself is another letter
    rows = make_rows(8)["gsm8k_test.jsonl"]
    rows[3]["question"] = "What is Z plus 1?"
    names = ("gsm8k_test.jsonl", "gsm8k_train.jsonl")
    files = make_files(8, *names, changes={names[0]: rows})
    with pytest.raises(NonFiniteError, match=r"gsm8k, item 3: .*model.embed_tokens"):
        run(loaded, files, tmp_path, ["gsm8k"], batch_size=3)


def test_rolling_texts(load: Load, tiny: Make) -> None:
    from lm_eval.api.instance import Instance

    loaded = load(tiny("llama"))
    spoil(loaded.model, "model.embed_tokens.weight", NAN, RARE)
    texts = ["some cats", "some dogs", "the letter Z and more", "owls"]
    asked = [
        Instance("loglikelihood_rolling", {}, (text,), 0, metadata=("wikitext", i, 1))
        for i, text in enumerate(texts)
    ]
    with pytest.raises(NonFiniteError, match="wikitext, item 2: "):
        HarnessModel(loaded, 2).loglikelihood_rolling(asked, disable_tqdm=True)


@pytest.mark.parametrize("by_row", [True, False])
def test_held_out_text(load: Load, text_run: Path, by_row: bool) -> None:
    loaded = load(text_run / "mha" / "model")
    spoil(loaded.model, "model.layers.0.self_attn.v_proj.weight", NAN)
    text = open_validation(RunDirectory(text_run), by_row=by_row, limit=None)
    with pytest.raises(NonFiniteError, match=r"validation, row 0: .*model.layers.0"):
        run_validation(HarnessModel(loaded), text)


def test_the_row_of_held_out_text_is_counted(load: Load, tiny: Make, text_run: Path) -> None:
    loaded = load(tiny("llama"))
    text = open_validation(RunDirectory(text_run), by_row=True, limit=None)
    rows = list(text.rows(loaded.tokenizer, 512))
    digit = ord("7")  # first read in document 7
    expected = next(i for i, row in enumerate(rows) if bool((row.input_ids == digit).any()))
    assert expected > 3
    spoil(loaded.model, "model.embed_tokens.weight", NAN, digit)
    with pytest.raises(NonFiniteError, match=rf"validation, row {expected}: "):
        run_validation(HarnessModel(loaded), text)


def test_the_commands_exit_with_1(text_run: Path, load: Load, make_files: Make,
                                  monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    from wuneng_cli.main import app

    monkeypatch.chdir(text_run.parents[1])
    loaded = load(text_run / "wuneng" / "model")
    spoil(loaded.model, "model.norm.weight", NAN)
    loaded.model.save_pretrained(text_run / "wuneng" / "model")
    files = make_files(4, "copa_val.jsonl")
    for line in (
        ["eval", "--tasks", "copa", "--data-dir", str(files), "--baseline", "none"],
        ["eval", "--tasks", "copa", "--data-dir", str(files), "--state", "permute"],
        ["eval", "--tasks", "validation"],
        ["generate", "--prompt", "cats", "--temperature", "0"],
        ["generate", "--prompt", "cats"],
    ):
        result = CliRunner().invoke(app, line)
        assert result.exit_code == 1, (line, result.output)
        shown = " ".join(result.stderr.split())
        assert "the first layer that is not finite is model.norm (its weight is" in shown, shown
        assert "Traceback" not in result.output
