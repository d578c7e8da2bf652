"""Tokens saved: by hand, censored, and intervals that cover."""

from __future__ import annotations

import math

import numpy as np
import pytest

from wuneng.statistics import tokens_saved, tokens_to_reach

CURVE = [(100.0, 4.0), (200.0, 3.0), (300.0, 2.5)]


@pytest.mark.parametrize(
    ("loss", "expected"),
    [(3.5, 150.0), (3.0, 200.0), (2.75, 250.0), (2.5, 300.0), (5.0, 100.0), (2.4, None)],
)
def test_where_a_curve_reaches_a_loss(loss: float, expected: float | None) -> None:
    assert tokens_to_reach(CURVE, loss) == expected


def test_a_curve_that_was_no_number_for_a_while() -> None:
    assert tokens_to_reach([(1.0, math.nan), (2.0, 3.0), (3.0, 2.0)], 2.5) == 2.5
    assert tokens_to_reach([(1.0, 4.0), (2.0, math.inf), (3.0, 2.0)], 2.5) == 3.0


def test_the_saving_by_hand() -> None:
    baseline = {1: [(100.0, 5.0), (300.0, 3.5)], 2: [(100.0, 5.0), (300.0, 2.75)]}
    found = tokens_saved({1: CURVE, 2: CURVE, 3: CURVE}, baseline)
    assert found is not None
    assert found.saved == pytest.approx(1 - math.sqrt(150 * 250) / 300)
    assert (found.orders, found.censored) == (2, 0)
    logs = np.log([150 / 300, 250 / 300])
    half = 12.706204736 * logs.std(ddof=1) / math.sqrt(2)
    assert found.interval == pytest.approx(
        (1 - math.exp(logs.mean() + half), 1 - math.exp(logs.mean() - half))
    )


def test_one_order_has_no_interval() -> None:
    found = tokens_saved({0: CURVE}, {0: [(300.0, 3.0)]})
    assert found is not None
    assert found.saved == pytest.approx(1 / 3)
    assert found.interval is None


def test_an_arm_that_never_gets_there_is_censored() -> None:
    found = tokens_saved({0: CURVE, 1: CURVE}, {0: [(300.0, 1.0)], 1: [(300.0, 3.0)]})
    assert found is not None
    assert found.censored == 1
    assert found.saved == pytest.approx(1 - math.sqrt(200 / 300)), "at most this"
    assert found.interval is None, "of what is only a bound"


def test_without_a_common_order_nothing_is_said() -> None:
    assert tokens_saved({0: CURVE}, {1: CURVE}) is None
    assert tokens_saved({0: CURVE}, {0: [(300.0, math.nan)]}) is None
    assert tokens_saved({0: []}, {0: CURVE}) is None


def test_the_interval_covers_the_true_saving() -> None:
    """Curves L = 10 T^-1/2; the arm needs 40 % fewer tokens, times a seed's own luck."""
    generator = np.random.default_rng(6)
    steps = np.linspace(50, 1000, 60)
    baseline = [(float(t), 10 * t**-0.5) for t in steps]
    covered = 0
    for _ in range(400):
        arm = {}
        for seed in range(4):
            speed = 0.6 * math.exp(generator.normal(0, 0.1))
            arm[seed] = [(float(t), 10 * (t / speed) ** -0.5) for t in steps]
        found = tokens_saved(arm, dict.fromkeys(range(4), baseline))
        assert found is not None
        assert found.interval is not None
        covered += found.interval[0] <= 0.4 <= found.interval[1]
    assert 0.92 <= covered / 400 <= 0.98


def test_a_curve_of_one_evaluation_says_nothing_of_when() -> None:
    """It said that nothing was saved, with an interval of no width."""
    arm, baseline = {0: [(100.0, 1.0)], 1: [(100.0, 1.1)]}, {0: [(100.0, 2.0)], 1: [(100.0, 2.1)]}
    assert tokens_saved(arm, baseline) is None
    longer = {**arm, 1: [(50.0, 3.1), (100.0, 1.1)]}
    found = tokens_saved(longer, baseline)
    assert found is not None
    assert found.orders == 1
    assert found.saved == pytest.approx(0.25)


def test_orders_that_are_all_alike_have_no_spread() -> None:
    """It was an interval of no width: as if no fresh seed could need other than 100 tokens."""
    found = tokens_saved({0: CURVE, 1: CURVE}, {0: [(300.0, 4.5)], 1: [(300.0, 4.2)]})
    assert found is not None
    assert found.saved == pytest.approx(1 - 100 / 300)
    assert (found.interval, found.orders, found.censored) == (None, 2, 0)
