"""A row of parity with its ones marked: one sees at which tokens each state turns."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

import wuneng_cli.inspect as inspect_command
from wuneng.inspect import report
from wuneng.inspect.strips import strip_lines, turns
from wuneng.inspect.subject import _ones


def record(bits: str, *paths: list[float]) -> dict[str, Any]:
    ones = [place for place, bit in enumerate(bits, start=1) if bit == "1"]
    coordinate = [list(row) for row in zip(*paths, strict=True)]
    return {
        "text": {"tokens": len(bits), "ones": ones},
        "layers": [{"layer": 3, "state": {"coordinate": coordinate}}, {"layer": 4}],
    }


def test_turns_at_ones_and_elsewhere() -> None:
    assert turns([1.0, -1.0, -1.0, 1.0], ones=[2, 4]) == (2, 0)
    assert turns([1.0, -1.0, 1.0, 1.0], ones=[2, 4]) == (1, 1)
    assert turns([-1.0], ones=[1]) == (0, 0)


def test_the_ones_stand_above_the_sides() -> None:
    kept, other = [1.0, -1.0, -1.0, 1.0, 1.0], [1.0, 1.0, -1.0, -1.0, -1.0]
    assert list(strip_lines(record("01010", kept, other), 80)) == [
        "tokens in order: the ones, and the side that each head's state is on",
        "ones  .1.1.",
        "3.0   +--++",
        "3.1   ++---",
        "3.0: turns at 2 of 2 ones and at 0 of 2 zeros after the first token",
        "3.1: turns at 0 of 2 ones and at 1 of 2 zeros after the first token",
    ]


def test_strips_are_as_wide_as_the_terminal() -> None:
    bits = "01" * 60
    lines = list(strip_lines(record(bits, [1.0] * 120), 60))
    strips = [line for line in lines if line.startswith(("ones", "3.0  "))]
    assert max(map(len, strips)) == 60
    assert "".join(line[6:] for line in strips if line.startswith("ones")).count("1") == 60


def test_other_texts_have_none() -> None:
    found = record("01010", [1.0] * 5)
    assert list(strip_lines({**found, "text": {"tokens": 5, "ones": []}}, 80)) == []


def test_ones_of_a_task_in_a_mixture() -> None:
    """Zero and one are 65 and 66 there: the tokens of the tasks before them are counted first."""
    assert _ones(torch.tensor([65, 66, 65, 66, 66])) == (2, 4, 5)
    assert _ones(torch.tensor([65, 65])) == ()


def test_what_is_counted_folds_on_a_terminal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lines were 70 columns wide on a terminal of 60."""
    monkeypatch.setattr(report, "tables", lambda record: [])
    monkeypatch.setattr(report, "missing_lines", lambda record: [])
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    inspect_command._print(record("01010", [1.0, -1.0, -1.0, 1.0, 1.0]), "table")
    lines = capfd.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert "3.0   +--++" in lines
    told = "3.0: turns at 2 of 2 ones and at 0 of 2 zeros after the first token"
    assert told in " ".join(line.strip() for line in lines)
