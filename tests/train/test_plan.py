"""The plan of a run: made once, frozen, and what run, dry run and benchmark go by."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.convert.sources import save_source
from tests.train.tiny import Watcher
from wuneng.convert import ConvertedSources
from wuneng.data import tokenizer as tokenizers
from wuneng.errors import DataError, ModelError, RecipeError
from wuneng.model import WuNengConfig
from wuneng.recipe import Recipe, load_recipe
from wuneng.records import RunDirectory
from wuneng.train import Workers, run
from wuneng.train import arms as arm_configs
from wuneng.train.plan import RunPlan, plan_run
from wuneng.train.trainable import freeze

#: Two seeds, an arm that is sized to match, one with an optimiser of its own.
RECIPE: dict[str, Any] = {
    "name": "planned",
    "seed": [3, 4],
    "model": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    "arms": {"wuneng": {}, "mha": {}, "no-middle": {"training": {"learning_rate": 0.01}}},
    "data": {"kind": "text", "tokenizer": {"train_bpe": 300}},
    "training": {"steps": 2, "sequence_length": 16, "batch_size": 4, "num_threads": 1},
    "device": "cpu",
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    lines = (f"Number {n} is followed by {n + 1}, then by {n + 2}." for n in range(80))
    path.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    return path


def recipe(place: Path, texts: Path, *changes: str) -> Recipe:
    path = place / "planned.yaml"
    path.write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    where = (f"data.train={texts}", f"data.cache_dir={texts.parent / 'cache'}")
    return load_recipe(path, [*where, *changes])


def shapes(config: WuNengConfig) -> dict[str, Any]:
    """What a configuration says of the network, without what a tokenizer or a file adds."""
    left_out = ("pad_token_id", "bos_token_id", "eos_token_id", "dtype", "architectures")
    values = json.loads(config.to_json_string(use_diff=False))
    return {name: value for name, value in values.items() if name not in left_out}


def test_nothing_of_a_plan_can_be_changed(tmp_path: Path, texts: Path) -> None:
    plan = plan_run(recipe(tmp_path, texts))
    arm = plan.arms["mha"]
    parts: tuple[Any, ...] = (plan, plan.outline, plan.vocabulary, arm, arm.facts)
    for part in parts:
        for field in dataclasses.fields(part):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(part, field.name, None)
    mappings: tuple[Any, ...] = (plan.arms, arm.trainable, arm.facts.parts)
    for mapping in mappings:
        with pytest.raises(TypeError):
            mapping["new"] = None


def test_an_arm_is_resolved_once_however_many_seeds(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()

    def counted(module: Any, name: str) -> None:
        real = getattr(module, name)

        def call(*arguments: Any, **named: Any) -> Any:
            calls[name] += 1
            return real(*arguments, **named)

        monkeypatch.setattr(module, name, call)

    counted(arm_configs, "from_settings")
    counted(arm_configs, "match")
    chosen = recipe(tmp_path, texts)
    results = run(chosen, display=Watcher(), runs_root=tmp_path / "runs")
    assert {arm["seeds"][1] for arm in results.record["arms"].values()} == {4}
    assert calls == {"from_settings": 3, "match": 1}


def test_run_dry_run_and_benchmark_say_the_same_of_an_arm(tmp_path: Path, texts: Path) -> None:
    from wuneng.bench.architectures import choose
    from wuneng.bench.request import make_request
    from wuneng_cli.dry_run import plan as dry_run

    chosen = recipe(tmp_path, texts, "seed=3")
    planned = plan_run(chosen)
    estimated = dry_run(chosen)["arms"]
    request = make_request(
        model=str(tmp_path / "bench.yaml"), against=["mha", "no-middle"][0], seq_len="16"
    )
    (tmp_path / "bench.yaml").write_text(
        (tmp_path / "planned.yaml")
        .read_text()
        .replace("kind: text", f"kind: text\n  train: {texts}")
    )
    compared = {one.arm: one for one in choose(request).architectures}
    results = run(chosen, display=Watcher(), runs_root=tmp_path / "runs")
    assert planned.vocabulary.size == 300
    for name, arm in planned.arms.items():
        saved = WuNengConfig.from_pretrained(results.directory / name / "model")
        assert shapes(saved) == shapes(arm.config)
        result = results.record["arms"][name]
        for key in ("parameters", "trainable_parameters", "learning_rate"):
            assert estimated[name][key] == result[key], key
        assert estimated[name]["parameters"] == arm.facts.parameters
        assert estimated[name]["training_flops"] == result["training_flops"]
        assert sum(arm.trainable.values()) == arm.facts.trainable
    assert (
        planned.arms["mha"].config.intermediate_size
        > planned.arms["wuneng"].config.intermediate_size
    )
    assert planned.arms["no-middle"].training.learning_rate == 0.01
    for name in ("wuneng", "mha"):
        assert shapes(compared[name].config) == shapes(planned.arms[name].config)
        assert compared[name].parameters == planned.arms[name].facts.parameters


def test_a_finished_arm_is_not_resolved_again(tmp_path: Path, texts: Path) -> None:
    """What it started from may be gone."""
    start = save_source(tmp_path / "llama", vocab_size=300, **RECIPE["model"])
    arms = f"arms={{wuneng: {{}}, mha: {{}}, source: {{init_from: {start}, train: none}}}}"
    chosen = recipe(tmp_path, texts, "seed=3", arms)
    plan = plan_run(chosen, ConvertedSources())
    assert plan.arms["source"].trainable == {}
    (start / "config.json").unlink()
    with pytest.raises(ModelError, match="llama"):
        plan_run(chosen, ConvertedSources())
    left: RunPlan = plan_run(chosen, ConvertedSources(), arms=["mha"])
    assert list(left.arms) == ["mha"]
    assert left.outline == plan.outline
    assert shapes(left.arms["mha"].config) == shapes(plan.arms["mha"].config)


def test_what_is_wanted_of_the_text(tmp_path: Path, texts: Path) -> None:
    there = recipe(tmp_path, texts)
    assert plan_run(there).vocabulary.tokenizer is None
    read = plan_run(there, text="read")
    assert read.vocabulary.tokenizer is not None
    assert len(read.vocabulary.tokenizer) == read.vocabulary.size == 300
    end = read.vocabulary.special_ids["eos_token_id"]
    assert end is not None
    assert read.arms["mha"].config.eos_token_id == end
    gone = recipe(tmp_path, tmp_path / "gone.txt")
    assert plan_run(gone, text="none").vocabulary.size == 300
    with pytest.raises(DataError, match=r"data\.train"):
        plan_run(gone)


def test_a_tokenizer_of_a_stream_is_learned_once_for_a_run(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From up to 100 million characters: for all seeds, processes and commands that work on the
    run, also where the stream holds other text by then."""
    from wuneng.data import corpus_tokenizer

    learned = []

    def learn(documents: Any, vocab_size: int, field: str) -> Any:
        learned.append(vocab_size)
        return tokenizers.train_byte_pair_tokenizer(documents, vocab_size, field)

    monkeypatch.setattr(corpus_tokenizer, "train_byte_pair_tokenizer", learn)
    stream = tmp_path / "stream"
    stream.mkdir()
    shutil.copy(texts, stream)
    settings = f"data.train={{dataset: {stream}, streaming: true}}"
    chosen = recipe(tmp_path, texts, settings, f"data.cache_dir={tmp_path}", "arms={wuneng: {}}")
    results = run(chosen, display=Watcher(), runs_root=tmp_path / "runs")
    assert results.record["arms"]["wuneng"]["seeds"] == [3, 4]
    assert learned == [300]
    directory = RunDirectory(tmp_path / "runs" / "planned")
    first = (directory.learned_tokenizer / "tokenizer.json").read_bytes()
    (stream / texts.name).write_text(texts.read_text().upper().replace('"TEXT"', '"text"'))
    for workers in (Workers(1), Workers(2)):
        directory.results.unlink()
        for seed in (3, 4):
            shutil.rmtree(directory.path / "wuneng" / f"seed-{seed}")
        again = {"workers": workers, "out": directory.path}
        run(chosen, display=Watcher(), runs_root=tmp_path / "runs", **again)
        for seed in (3, 4):
            model = directory.path / "wuneng" / f"seed-{seed}" / "model"
            assert (model / "tokenizer.json").read_bytes() == first
    assert learned == [300]
    (directory.learned_tokenizer / "tokenizer.json").write_text("{}")
    assert plan(chosen, directory).vocabulary.tokenizer.tokenize("NUMBER 7")[0] == "NUMBER"
    assert learned == [300, 300]


def plan(chosen: Recipe, directory: RunDirectory) -> RunPlan:
    return plan_run(chosen, text="read", learned=directory.learned_tokenizer)


def test_a_dry_run_finds_patterns_that_no_parameter_answers_to(tmp_path: Path, texts: Path) -> None:
    with pytest.raises(RecipeError, match=r"training\.learning_rates: 'no_such_name'"):
        plan_run(recipe(tmp_path, texts, "training.learning_rates={no_such_name: 2}"))


def test_a_name_that_the_model_does_not_have_is_no_silence() -> None:
    model = torch.nn.Linear(2, 2)
    freeze(model, {"bias": 2})
    assert [p.requires_grad for p in (model.weight, model.bias)] == [False, True]
    with pytest.raises(ValueError, match="no parameter is called scale"):
        freeze(model, {"bias": 2, "scale": 1})
