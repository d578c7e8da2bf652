"""Regressions beyond noise: planted ones are caught, repetitions pass."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.bench.records import PlantedClock
from wuneng.bench.compare import compare_records
from wuneng.bench.timing import interleave


def retimed(record: Any, seed: int, slow: float = 1.0) -> Any:
    """The record as another run would have it, mha's calls ``slow`` times as long."""
    again = copy.deepcopy(record)
    for row in again["rows"]:
        clock = PlantedClock(seed + 1000 * row["seq_len"], {"mha": slow})
        name = f"0 {row['arm']}"
        timing = interleave({name: lambda i: None}, {name: 0.01}, clock, seconds=0.2)[name]
        row["median_ms"], row["spread_ms"] = 1000 * timing.median, 1000 * timing.spread
        row["samples"] = len(timing.samples)
    return again


def steady(record: Any) -> Any:
    """The record with a machine whose rates do not move."""
    calm = copy.deepcopy(record)
    calm["machine"]["rates_at_end"] = dict(calm["machine"]["rates_at_start"])
    return calm


@pytest.mark.parametrize("seed", range(10))
def test_two_identical_runs_pass(decode_record: Any, seed: int) -> None:
    old = retimed(steady(decode_record), seed)
    new = retimed(steady(decode_record), seed + 50)
    assert [c for c in compare_records(old, new).changes if c.verdict != "none"] == []


@pytest.mark.parametrize("seed", range(10))
def test_a_planted_slowdown_of_20_percent_is_caught(decode_record: Any, seed: int) -> None:
    old = retimed(steady(decode_record), seed)
    new = retimed(steady(decode_record), seed + 50, slow=1.2)
    worse = compare_records(old, new).worse(0.1)
    assert [(c.row.arm, c.quantity) for c in worse] == [("mha", "time")] * 2
    assert all(0.15 < c.relative < 0.25 for c in worse)
    better = compare_records(new, old).changes
    assert {c.row.arm for c in better if c.verdict == "better"} == {"mha"}


def test_a_slower_machine_is_not_a_regression(decode_record: Any) -> None:
    old = retimed(steady(decode_record), 0)
    new = retimed(steady(decode_record), 50, slow=1.2)
    for rates in (new["machine"]["rates_at_start"], new["machine"]["rates_at_end"]):
        rates["matmul_flops"] /= 1.25
    comparison = compare_records(old, new)
    assert comparison.worse() == []
    assert "moved by 25%" in comparison.warnings[-1]


def test_more_memory_and_lost_cases_are_regressions(decode_record: Any) -> None:
    old, new = steady(decode_record), steady(decode_record)
    new["rows"][0]["peak_bytes"] = int(new["rows"][0]["peak_bytes"] * 1.05)
    new["rows"][1].update(status="out of memory", median_ms=None, peak_bytes=None)
    worse = compare_records(old, new).worse(0.01)
    assert {(c.quantity, c.row.arm) for c in worse} == {
        ("memory", new["rows"][0]["arm"]),
        ("status", new["rows"][1]["arm"]),
    }


def test_cases_of_one_record_only_are_told(decode_record: Any) -> None:
    old, new = steady(decode_record), steady(decode_record)
    gone = new["rows"].pop()
    comparison = compare_records(old, new)
    assert [row.arm for row in comparison.only_old] == [gone["arm"]]
    assert comparison.only_new == []
