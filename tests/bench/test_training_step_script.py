"""What ``benchmarks.training_step`` compares is comparable, and its table says what it found."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.figures import table
from benchmarks.training_step import MODEL, measured
from wuneng.bench.architectures import choose
from wuneng.bench.request import BenchRequest
from wuneng.records import write_json


def test_the_arms_have_as_many_parameters_each() -> None:
    arms = choose(BenchRequest(model=MODEL, seq_lens=(512,), against=("mha", "rwkv7")))
    ours, *others = (arm.parameters for arm in arms.architectures)
    assert len(others) == 2
    assert all(abs(ours - other) < 0.01 * ours for other in others)


@pytest.mark.parametrize("what", ["train", "prefill"])
def test_rows_of_two_arms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    found = measured(2, 16, 3, arms=("mha",), what=what)
    rows = {row["arm"]: row for row in found["rows"]}
    assert set(rows) == {"wuneng", "mha"}
    assert rows["mha"]["of_mha"] == rows["mha"]["peak_of_mha"] == 1
    for row in rows.values():
        assert 0 < row["fastest_milliseconds"] <= row["milliseconds"]
        assert row["tokens_per_second"] == pytest.approx(32e3 / row["milliseconds"])
        # Weights of some four million parameters, in training gradients and two moments, and more.
        copies = 4 if what == "train" else 1
        assert 4 * 3e6 < row["peak_bytes"] / copies < 4 * 8e6
    write_json(tmp_path / "steps.json", {"load_average": [0.5], "shapes": [found]})
    monkeypatch.setattr("benchmarks.figures.HERE", tmp_path)
    lines = table("steps.json", "steps").splitlines()
    assert len([line for line in lines if line.startswith("| 2 | 16 | ")]) == 2
    assert "| 2 | 16 | mha |" in lines[-1]
