"""How long a benchmark will take is said before it begins, from what it has to do."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.bench.records import PlantedClock, tiny_request
from wuneng.bench.engine import Case
from wuneng.bench.forecast import Forecast, Parts, forecast, in_words
from wuneng.bench.groups import Group
from wuneng.bench.machine import Rates
from wuneng.bench.record import Row
from wuneng.bench.roofline import Work
from wuneng.bench.session import run_benchmark

RATES = Rates(bandwidth=1e9, matmul=1e10)


def case(what: str, arm: str, tokens: int = 64, seconds: float = 0.0, **fields: Any) -> Case:
    """One whose call is ``seconds`` of multiplications on such a machine."""
    row = Row(what, "forward", arm, tokens, 1, "fp32")
    work = Work(bytes=0.0, flops=seconds * RATES.matmul)
    return Case(row, tokens, work, lambda: pytest.fail("prepared"), **fields)


def parts(*cases: Case, token: float = 1e-3, seconds: float = 4.0) -> Parts:
    return forecast([Group("all", list(cases), 1.0)], RATES, token, seconds).parts


def test_it_counts_what_seconds_does_not_bound() -> None:
    """A second of --seconds, and a case whose three rounds alone take 12."""
    slow = parts(case("train", "wuneng", seconds=1.0), seconds=1.0)
    assert slow.timing == pytest.approx(12.0, rel=0.01)
    assert slow.warm_up > 12.0
    quick = parts(case("train", "wuneng", seconds=1e-6), seconds=40.0)
    assert quick.timing == 40.0


def test_a_token_loop_is_counted_by_its_tokens() -> None:
    checked = [parts(case("ops", "native", checked_tokens=n)).checks for n in (0, 2000)]
    assert checked[1] - checked[0] == pytest.approx(2.0)
    looped = [parts(case("ops", "reference", looped_tokens=n)).warm_up for n in (0, 500)]
    assert looped[1] - looped[0] == pytest.approx(4 * 0.5)


def test_a_model_is_checked_once_for_each_use() -> None:
    once = parts(case("train", "mha", checked_tokens=64)).checks
    both = parts(*(case("train", "mha", length, checked_tokens=64) for length in (64, 128))).checks
    assert both == once
    assert parts(case("train", "mha"), case("decode", "mha")).checks > once
    group = [Group("all", [case("train", "mha"), case("train", "llama")], 1.0)]
    sizes = {"mha": 400_000_000}
    large = forecast(group, RATES, 1e-3, 4.0, sizes).parts.checks
    assert large > forecast(group, RATES, 1e-3, 4.0).parts.checks + 5, "models have to be built"


def test_what_is_left_goes_by_what_it_took() -> None:
    """Half is done and took twice as long as foretold."""
    ahead = Forecast([Parts(10, 10, 10)] * 4, cases=12, tokens=64, seconds=1.0)
    assert ahead.reached(0, 0.0) == " (1 of 4)"
    assert ahead.reached(2, 120.0) == " (3 of 4, about 2 min left)"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(1, "5 s"), (38, "40 s"), (99, "100 s"), (100, "2 min"), (3000, "50 min"), (7200, "2.0 h")],
)
def test_no_more_exact_than_it_is_known(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_it_is_the_first_that_is_said() -> None:
    """``--seconds 4`` took a minute or three, and nothing said so."""
    told: list[str] = []
    request = tiny_request(what="ops,decode")
    record = run_benchmark(request, notify=told.append, clock=PlantedClock(0))
    first = re.fullmatch(
        r"(\d+) cases at up to 32 tokens take about (\d+) (s|min): checks against the reference "
        r"\d+ s, warm-up \d+ s, repetitions \d+ s \(--seconds 4, but three rounds of each case at "
        r"least\)",
        told[0],
    )
    assert first is not None, told[0]
    assert int(first[1]) == len(record["rows"])
    groups = [
        re.search(r"\((\d+) of (\d+)(, about \d+ (s|min) left)?\)$", line) for line in told[1:]
    ]
    assert [int(found[1]) for found in groups if found] == list(range(1, len(groups) + 1))
