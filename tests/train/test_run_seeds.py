"""Several seeds, and what arms share from one."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.small_run import train
from wuneng.records import read_jsonl
from wuneng.train import loop


def test_several_seeds_are_averaged_and_kept_apart(tmp_path: Path) -> None:
    results, _ = train(tmp_path, "seed=[3,4]", "training.steps=3")
    entry = results.record["arms"]["wuneng"]
    assert entry["seeds"] == [3, 4]
    losses = [part["quality"]["parity/loss"] for part in entry["per_seed"]]
    assert losses[0] != losses[1]
    assert entry["quality"]["parity/loss"] == pytest.approx(sum(losses) / 2)
    spread = abs(losses[0] - losses[1]) / 2**0.5
    assert entry["quality_std"]["parity/loss"] == pytest.approx(spread)
    assert (results.directory / "mha" / "seed-4" / "model" / "config.json").exists()
    rows = read_jsonl(results.directory / "mha" / "seed-4" / "metrics.jsonl")
    assert {row["seed"] for row in rows} == {4}
    assert "means over 2 seeds" in results.sentence


def test_arms_are_paired_by_seed(tmp_path: Path) -> None:
    results, _ = train(tmp_path, "seed=[3,4,5]", "training.steps=3")
    arms, name = results.record["arms"], "parity/accuracy@16"
    [pair] = [p for p in results.record["paired"] if p["figure"] == name]
    ours, theirs = (
        [seed["quality"][name] for seed in arms[arm]["per_seed"]] for arm in pair["arms"]
    )
    apart = [a - b for a, b in zip(ours, theirs, strict=True)]
    assert pair["seeds"] == 3
    assert pair["difference"] == pytest.approx(sum(apart) / 3)
    half = 4.302653 * statistics.stdev(apart) / math.sqrt(3)  # Student's t, two degrees of freedom
    expected = [pair["difference"] - half, pair["difference"] + half]
    assert pair["interval"] == pytest.approx(expected, abs=1e-6)
    assert results.paired is not None
    assert results.paired.caption == "paired over the same 3 seeds"
    shown = results.paired.rows[0][1]
    assert str(shown).startswith(f"{pair['difference']:+.3f} (")


def test_arms_read_the_same_batches_and_start_from_the_same_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[torch.Tensor]] = {}
    original = loop.take_step

    def recording(*arguments: Any, **named: Any) -> Any:
        seen.setdefault(named["arm"], []).append(arguments[2].input_ids)
        return original(*arguments, **named)

    monkeypatch.setattr(loop, "take_step", recording)
    train(tmp_path, "arms=[wuneng,mha,mha-shift]")
    batches = list(seen.values())
    assert [len(taken) for taken in batches] == [6, 6, 6]
    for other in batches[1:]:
        assert all(torch.equal(a, b) for a, b in zip(batches[0], other, strict=True))
    assert not torch.equal(batches[0][0], batches[0][1])
