"""What ``benchmarks.training_step`` compares is comparable, and its table says what it found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.figures import AWAITED, table
from benchmarks.training_step import MODEL, before, measured
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
    assert {gate["arm"]: gate["passed"] for gate in found["gates"]} == dict.fromkeys(rows, True)
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


def test_an_earlier_commits_record_stands_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shapes(milliseconds: float, ratio: float) -> list[dict[str, Any]]:
        row = {"arm": "mha", "fastest_milliseconds": milliseconds, "of_mha": ratio}
        return [{"batch": 2, "tokens": 16, "rows": [row | {"peak_bytes": 3 * 2**20}]}]

    old = {"environment": {"git_commit": "123456789"}, "shapes": shapes(16, 0.5)}
    write_json(tmp_path / "old.json", {**old, "load_average": [0.5]})
    kept = before(tmp_path / "old.json")
    assert kept == {"git_commit": "123456789", "shapes": old["shapes"]}
    write_json(tmp_path / "new.json", {"shapes": shapes(8, 1), "before": kept})
    monkeypatch.setattr("benchmarks.figures.HERE", tmp_path)
    assert table("old.json", "before") == AWAITED
    lines = table("new.json", "before").splitlines()
    assert lines[0] == "Before: commit 1234567."
    assert lines[-1] == "| 2 | 16 | mha | 2,000 → 4,000 | 0.50 → 1.00 | 3 → 3 MiB |"
