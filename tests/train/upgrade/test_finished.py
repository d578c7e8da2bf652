"""Runs that start from a Llama: what is frozen stays, what is new trains, LoRA is as large."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.convert.sources import tensors_of
from tests.precision import assert_as_exact
from tests.train.small_upgrade import RECIPE, STEPS, checkpoint_of
from wuneng.records import read_jsonl, verify
from wuneng.train import Results

needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft")


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


def test_every_field_of_the_new_heads_applies(finished: Results) -> None:
    config = json.loads((finished.directory / "wuneng" / "model" / "config.json").read_text())
    asked = RECIPE["model"] | {"hidden_size": 48, "state_branch_init": "zero"}
    assert {name: config[name] for name in asked} == asked
