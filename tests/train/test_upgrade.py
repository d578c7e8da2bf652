"""Runs that start from a Llama: what is frozen stays, what is new trains, LoRA is as large."""

from __future__ import annotations

import importlib.util
import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.convert.sources import tensors_of
from tests.precision import assert_as_exact
from tests.train.small_upgrade import RECIPE, STEPS, checkpoint_of, save_sources, train
from tests.train.tiny import Watcher
from wuneng.convert import ConvertedSources
from wuneng.errors import InputError, ModelError, RecipeError
from wuneng.recipe import load_recipe, read_written
from wuneng.records import read_json, read_jsonl, verify
from wuneng.study import run_study
from wuneng.train import Interrupted, Results, arm_run, run

needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("upgrade")
    save_sources(place)
    return place


@pytest.fixture(scope="module")
def finished(place: Path) -> Results:
    if importlib.util.find_spec("peft") is None:
        pytest.skip("needs peft")
    return train(place, place / "finished")[0]


@pytest.mark.parametrize("arm", ["source", "wuneng", "taught"])
def test_frozen_weights_are_the_sources_bit_for_bit(
    place: Path, finished: Results, arm: str
) -> None:
    source, trained = tensors_of(place / "llama"), tensors_of(finished.directory / arm / "model")
    assert source
    for name, tensor in source.items():
        assert torch.equal(trained[name], tensor), name


def test_arms_that_start_from_the_same_share_its_files(finished: Results) -> None:
    starts = {arm: finished.directory / arm / "start" for arm in RECIPE["arms"]}
    one, other = (starts[arm] / "model.safetensors" for arm in ("source", "lora"))
    assert one.samefile(other)
    # What is added has a file of its own beside the source's, and is shared as well.
    ours, taught = (sorted(starts[arm].glob("model-*.safetensors")) for arm in ("wuneng", "taught"))
    assert len(ours) == len(taught) == 2
    assert ours[0].samefile(one)
    assert all(a.samefile(b) for a, b in zip(ours, taught, strict=True))
    assert one.stat().st_nlink == 5  # the teacher is the source as well
    assert ours[1].stat().st_nlink == 2
    assert set(load_file(ours[0])) == set(load_file(one))
    for start in starts.values():
        verify(start)
        assert not list(start.glob(".*"))


def test_what_is_new_has_moved(finished: Results) -> None:
    before = tensors_of(finished.directory / "wuneng" / "start")
    after = tensors_of(finished.directory / "wuneng" / "model")
    new = [name for name in after if "state_heads" in name or "cross_head" in name]
    moved = [name for name in new if not torch.equal(before[name], after[name])]
    assert "model.layers.0.cross_head.branch_proj.weight" in moved
    assert len(moved) > len(new) / 2


def test_adapters_are_merged_into_weights_that_stayed(place: Path, finished: Results) -> None:
    source = tensors_of(place / "llama")
    stored = checkpoint_of(finished.directory, "lora", "model.safetensors")
    merged = tensors_of(finished.directory / "lora" / "model")
    assert merged.keys() == source.keys()
    name = "model.layers.1.mlp.up_proj"
    assert torch.equal(stored[f"{name}.base_layer.weight"], source[f"{name}.weight"])
    down, up = (stored[f"{name}.lora_{letter}.default.weight"] for letter in "AB")
    base = source[f"{name}.weight"]
    reference, exact = (
        base.to(dtype) + 2.0 * up.to(dtype) @ down.to(dtype)
        for dtype in (torch.float32, torch.float64)
    )
    assert_as_exact(merged[f"{name}.weight"], reference, exact)
    assert up.abs().max() > 0


@pytest.mark.parametrize("arm", ["wuneng", "lora"])
def test_the_optimiser_remembers_only_what_trains(finished: Results, arm: str) -> None:
    moments = checkpoint_of(finished.directory, arm, "optimizer.safetensors")
    names = {key.partition("/")[2] for key in moments}
    mark = {"wuneng": ("state_heads", "cross_head"), "lora": (".lora_",)}[arm]
    assert names
    assert all(any(part in name for part in mark) for name in names)
    held = sum(t.numel() for key, t in moments.items() if key.startswith("exp_avg/"))
    assert held == finished.record["arms"][arm]["trainable_parameters"]


def test_the_control_is_as_large_as_what_it_controls(finished: Results) -> None:
    arms = finished.record["arms"]
    assert arms["source"]["trainable_parameters"] == 0
    assert arms["source"]["tokens"] == 0
    assert arms["source"]["final_loss"] is None
    assert 0 < arms["wuneng"]["trainable_parameters"] < arms["wuneng"]["parameters"]
    assert arms["lora"]["trainable_parameters"] == pytest.approx(
        arms["wuneng"]["trainable_parameters"], rel=0.02
    )
    assert arms["wuneng"]["tokens"] == arms["lora"]["tokens"] == STEPS * 4 * 32
    trained = tensors_of(finished.directory / "wuneng" / "model")
    assert sum(t.numel() for t in trained.values()) == arms["wuneng"]["parameters"]


def test_differences_are_paired_over_rows(finished: Results) -> None:
    arms = finished.record["arms"]
    pairs = {tuple(pair["arms"]): pair for pair in finished.record["paired"]}
    pair = pairs["source", "wuneng"]
    name = "text/bits_per_byte"
    assert pair["figure"] == name
    gap = arms["source"]["quality"][name] - arms["wuneng"]["quality"][name]
    assert math.isclose(pair["difference"], gap, abs_tol=1e-9)
    apart = math.hypot(*(arms[arm]["standard_error"][name] for arm in ("source", "wuneng")))
    assert 0 < pair["standard_error"] < apart
    low, high = pair["interval"]
    assert low < pair["difference"] < high


def test_the_table_and_the_sentence_name_the_control(finished: Results) -> None:
    titles = [row[0] for row in finished.table.rows]
    assert "trainable parameters" in titles
    assert "text/bits_per_byte, 95 % interval" in titles
    assert "LoRA control" in finished.sentence


def test_a_taught_arm_starts_as_its_teacher(finished: Results) -> None:
    """The new heads are silent at first, so the divergence from the source is nothing."""
    rows = read_jsonl(finished.directory / "taught" / "metrics.jsonl")
    assert abs(rows[0]["kl"]) < 1e-6
    assert rows[-1]["kl"] > 1e-6
    for row in rows:
        assert math.isclose(row["loss"], 0.5 * row["kl"] + 0.25 * row["ce"], rel_tol=1e-5)
    first = read_jsonl(finished.directory / "wuneng" / "metrics.jsonl")[0]
    assert "kl" not in first
    assert math.isclose(first["loss"], rows[0]["ce"], rel_tol=1e-6)


class Stopped(BaseException):
    pass


@pytest.mark.parametrize("arm", ["wuneng", "lora", "taught"])
def test_a_stopped_upgrade_continues_bit_for_bit(
    place: Path, finished: Results, tmp_path: Path, arm: str
) -> None:
    def at_step(progress: Any) -> None:
        if (progress.arm, progress.step) == (arm, 3):
            raise Stopped

    arms = {name: RECIPE["arms"][name] for name in {"wuneng": 0, arm: 0}}
    change = f"arms={json.dumps(arms)}"
    with pytest.raises(Stopped):
        train(place, tmp_path / "run", change, display=Watcher(at_step))
    _, watcher = train(place, tmp_path / "run", change)
    assert any("continuing after step 2" in note for note in watcher.notes)
    for file in ("model.safetensors", "optimizer.safetensors"):
        one = checkpoint_of(finished.directory, arm, file)
        two = checkpoint_of(tmp_path / "run", arm, file)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)


ONE_ARM = "arms={wuneng: {}}"


def test_the_resolved_recipe_repeats_the_run(place: Path, tmp_path: Path) -> None:
    first, _ = train(place, tmp_path / "first", ONE_ARM, "training.steps=2")
    again = load_recipe(first.directory / "recipe.yaml")
    second = run(again, tmp_path / "second", display=Watcher(), sources=ConvertedSources())
    quality = [r.record["arms"]["wuneng"]["quality"] for r in (first, second)]
    assert quality[0] == quality[1]


def test_a_wuneng_is_loaded_as_it_is_and_trained_by_name(
    place: Path, finished: Results, tmp_path: Path
) -> None:
    model = finished.directory / "wuneng" / "model"
    changes = (
        *(f"init_from={model}", "model={}", "training.learning_rates={}", "training.steps=2"),
        "arms={norms: {train: [layernorm]}}",
    )
    results, _ = train(place, tmp_path / "run", *changes, sources=None)
    before, after = tensors_of(model), tensors_of(results.directory / "norms" / "model")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "layernorm" in name}
    assert results.record["arms"]["norms"]["trains"] == ["layernorm"]
    assert not (results.directory / "norms" / "start").exists()


def test_a_teacher_may_be_another_model(place: Path, finished: Results, tmp_path: Path) -> None:
    teacher = finished.directory / "wuneng" / "model"
    change = f"arms={{wuneng: {{distill: {{teacher: '{teacher}'}}}}}}"
    results, _ = train(place, tmp_path / "run", change, "training.steps=2")
    rows = read_jsonl(results.directory / "wuneng" / "metrics.jsonl")
    assert rows[0]["loss"] == rows[0]["kl"] > 1e-6


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (["model.hidden_size=64"], RecipeError, r"model.hidden_size is 64, .*llama has 48"),
        (["model.rope_theta=5"], RecipeError, "model.rope_theta is 5.0, .*llama has 10000.0"),
        (["model.num_state_heads=3"], RecipeError, r"arms.wuneng: .*llama: cross_head 'gated'"),
        (["training.sequence_length=129"], RecipeError, "expected at most 128, the max_position"),
        (["train=[layer.9]"], RecipeError, r"arms.wuneng.train: 'layer.9' is found in no"),
        (["training.learning_rates={x_y: 2}"], RecipeError, "learning_rates: 'x_y' is found in no"),
        (["init_from=nowhere/else/at/all"], ModelError, "nowhere/else/at/all does not exist"),
        (["data.tokenizer=source"], InputError, "init_from: directory .*llama holds no tokenizer"),
    ],
)
def test_what_does_not_fit_stops_before_training(
    place: Path, tmp_path: Path, changes: list[str], error: type[InputError], message: str
) -> None:
    with pytest.raises(error, match=message):
        train(place, tmp_path / "run", ONE_ARM, *changes)
    assert not (tmp_path / "run" / "wuneng").exists()


def test_a_llama_needs_the_converter(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is a llama; .*wuneng convert"):
        train(place, tmp_path / "run", ONE_ARM, sources=None)


def test_a_missing_peft_is_named(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "peft" else found(name)
    )
    with pytest.raises(InputError, match=r"pip install 'wuneng\[lora\]'"):
        train(place, tmp_path / "run")


def test_every_field_of_the_new_heads_applies(finished: Results) -> None:
    config = json.loads((finished.directory / "wuneng" / "model" / "config.json").read_text())
    asked = RECIPE["model"] | {"hidden_size": 48, "state_branch_init": "zero"}
    assert {name: config[name] for name in asked} == asked


def test_seeds_draw_their_own_heads(place: Path, tmp_path: Path) -> None:
    arms = {name: RECIPE["arms"][name] for name in ("source", "wuneng")}
    changes = (f"arms={json.dumps(arms)}", "seed=[0, 1]", "training.steps=1")
    results, _ = train(place, tmp_path / "run", *changes)
    starts = [tensors_of(results.directory / "wuneng" / f"seed-{n}" / "start") for n in (0, 1)]
    name = "model.layers.0.state_heads.r_proj.weight"
    assert not torch.equal(starts[0][name], starts[1][name])
    pair = next(p for p in results.record["paired"] if p["arms"] == ["source", "wuneng"])
    assert (pair["seeds"], pair["test"]) == (2, "paired-t")
    source = results.record["arms"]["source"]
    assert source["final_loss"] is None
    assert source["quality_std"]["text/loss"] == 0.0
    assert "means over 2 seeds" in results.sentence


def test_scoring_the_source_can_be_stopped(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*inputs: Any, before_batch: Any, **options: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        before_batch()

    change = "arms={source: {model: {num_state_heads: 0}, train: none}}"
    with monkeypatch.context() as patch:
        patch.setattr(arm_run, "measure", interrupted)
        with pytest.raises(Interrupted, match="while arm 'source', seed 0, was scored"):
            train(place, tmp_path / "run", change, "training.learning_rates={}")
    results, _ = train(place, tmp_path / "run", change, "training.learning_rates={}")
    assert results.record["arms"]["source"]["steps"] == 0


def test_attention_can_be_given_a_token_shift_that_changes_nothing_yet(
    place: Path, tmp_path: Path
) -> None:
    """The control of a gain that a shift alone would have brought; new parameters of both kinds."""
    model = "model: {num_state_heads: 0, attention_token_shift: true}"
    arms = f"arms={{shifted: {{{model}, train: new+lora, lora: {{rank: 2}}}}}}"
    results, _ = train(place, tmp_path / "run", arms, "model={}", "training.learning_rates={}")
    source = tensors_of(place / "llama")
    before, after = (tensors_of(results.directory / "shifted" / n) for n in ("start", "model"))
    shifts = {f"model.layers.{n}.self_attn.shift_{letter}" for n in (0, 1) for letter in "kv"}
    assert before.keys() - source.keys() == shifts
    assert not any(before[name].any() for name in shifts)
    assert all(after[name].any() for name in shifts)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(after[name], source[name])
    assert torch.equal(after["model.norm.weight"], source["model.norm.weight"])


def test_an_upgrade_can_be_a_study(place: Path, tmp_path: Path) -> None:
    """As every other; arms keep the source's sizes."""
    arms = {name: RECIPE["arms"][name] for name in ("wuneng", "source", "lora")}
    study = {"primary": "text/bits_per_byte", "seeds": 2}
    path = tmp_path / "up.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "arms": arms, "study": study}, sort_keys=False))
    given = read_written(
        path,
        [
            *(f"init_from={place / 'llama'}", f"data.train={place / 'texts.jsonl'}"),
            *(f"data.cache_dir={place / 'cache'}", "training.steps=1", "training.log_every=1"),
        ],
    )
    found = run_study(given, display=Watcher(), runs_root=tmp_path, sources=ConvertedSources())
    (rung,) = found.record["rungs"]
    compared = read_json(found.directory / "compare" / "all" / "results.json")["arms"]
    figures = {name: arm["trainable_parameters"] for name, arm in compared.items()}
    assert figures["source"] == 0
    assert figures["lora"] == pytest.approx(figures["wuneng"], rel=0.02)
    assert {tuple(d["arms"]) for d in rung["differences"]} == {
        *(("wuneng", "source"), ("wuneng", "lora")),
    }
    with pytest.raises(
        RecipeError, match=r"study.ladder: expected none where an arm has init_from"
    ):
        read_written(path, ["study.ladder={sizes: [1M], tokens_per_parameter: [1]}"])
