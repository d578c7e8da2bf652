"""What an upgrade may start and learn from, over seeds and in a study."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import yaml

from tests.convert.sources import tensors_of
from tests.train.small_upgrade import RECIPE, train
from tests.train.tiny import Watcher
from wuneng.convert import ConvertedSources
from wuneng.errors import RecipeError
from wuneng.recipe import read_written
from wuneng.records import read_json, read_jsonl
from wuneng.study import run_study
from wuneng.train import Results

needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft")


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
    changes = [
        *(f"init_from={place / 'llama'}", f"data.train={place / 'texts.jsonl'}"),
        *(f"data.cache_dir={place / 'cache'}", "training.steps=1", "training.log_every=1"),
    ]
    given = read_written(path, changes)
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
        read_written(path, [*changes, "study.ladder={sizes: [1M], tokens_per_parameter: [1]}"])
