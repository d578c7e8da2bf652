"""The tables of docs/performance.md are what the records in benchmarks/ say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import figures
from wuneng.bench.record import write_record


def test_the_documents_tables_are_the_records() -> None:
    text = figures.DOCUMENT.read_text(encoding="utf-8")
    blocks = re.findall(r"<!-- table: (\S+) (\S+) -->\n(.*?)<!-- end -->", text, re.DOTALL)
    assert len(blocks) >= 10
    stale = [f"{name} {kind}" for name, kind, body in blocks if body != figures.table(name, kind)]
    assert not stale, f"run `python -m benchmarks.figures`: {stale}"


def test_tables_of_a_record(
    full_record: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "HERE", tmp_path)
    assert figures.table("some", "train") == figures.AWAITED
    write_record(tmp_path / "some", full_record)
    train = figures.table("some", "train").splitlines()
    assert len(train) == 2 + 6
    assert "of mha's speed" in train[0]
    assert train[2].startswith("| step | 16 | 1 | wuneng | ")
    assert "| state heads |" in figures.table("some", "parts")
    assert "GFLOP/s" in figures.table("some", "machine")
    assert len(figures.table("some", "exponents").splitlines()) > 10
    write_record(tmp_path / figures.REPEATED, full_record)
    assert "0 worse beyond noise" in figures.table("some", "changes")
