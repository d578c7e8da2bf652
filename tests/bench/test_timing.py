"""Clocks, interleaving, medians and spread."""

from __future__ import annotations

import time

from tests.bench.records import PlantedClock
from wuneng.bench.timing import Timing, WallClock, interleave, rounds_for


def test_cases_take_turns() -> None:
    clock = PlantedClock(0)
    calls = {"0 a": lambda i: None, "1 b": lambda i: None}
    interleave(calls, {"0 a": 0.01, "1 b": 0.01}, clock, seconds=0.4)
    assert clock.order[:6] == ["0 a", "1 b"] * 3
    assert len(clock.order) == 2 * 10  # 0.4 s / (2 calls x 2 cases x 10 ms)


def test_every_call_gets_the_next_inputs() -> None:
    seen: list[int] = []
    interleave({"a": seen.append}, {"a": 0.005}, WallClock(), seconds=0.0)
    assert seen == list(range(12))  # 3 rounds of 4 calls that fill 20 ms


def test_median_and_spread_by_hand() -> None:
    timing = Timing((1.0, 2.0, 3.0, 4.0, 10.0))
    assert timing.median == 3.0
    assert timing.spread == 4.0 - 2.0


def test_a_slow_case_is_still_repeated_three_times() -> None:
    assert rounds_for(seconds=1.0, one_round=60.0) == 3
    assert rounds_for(seconds=1.0, one_round=0.0) == 25
    assert rounds_for(seconds=1.0, one_round=0.1) == 10


def test_the_wall_clock_measures_all_repeats() -> None:
    start = time.perf_counter()
    taken = WallClock().seconds("a", lambda i: time.sleep(0.002), 0, 3)
    assert 0.006 <= taken <= time.perf_counter() - start
