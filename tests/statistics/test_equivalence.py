"""Superiority and equivalence: two one-sided tests against scipy, and what may be concluded."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from wuneng.statistics import (
    Conclusion,
    PairedDifference,
    conclude,
    equivalence,
    paired_bootstrap,
    paired_by_seed,
)


def test_two_one_sided_tests_are_scipys() -> None:
    differences = np.array([0.02, -0.05, 0.04, 0.01, -0.03, 0.06])
    found = equivalence(paired_by_seed(differences, np.zeros(6)), 0.08)
    sides = (
        stats.ttest_1samp(differences, -0.08, alternative="greater").pvalue,
        stats.ttest_1samp(differences, 0.08, alternative="less").pvalue,
    )
    assert found.p == pytest.approx(max(sides))
    interval = stats.ttest_1samp(differences, 0.0).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.shown == (found.low > -0.08 and found.high < 0.08)


def test_at_the_margin_equivalence_is_claimed_one_time_in_twenty() -> None:
    studies = np.random.default_rng(4).normal(0.3, 0.1, (2000, 5))
    claimed = [equivalence(paired_by_seed(one, np.zeros(5)), 0.3).shown for one in studies]
    assert 0.04 <= np.mean(claimed) <= 0.06


def seeds(*differences: float) -> PairedDifference:
    return paired_by_seed(np.array(differences), np.zeros(len(differences)))


@pytest.mark.parametrize(
    ("found", "margin", "expected"),
    [
        (seeds(0.50, 0.52, 0.49), 0.1, Conclusion.WORSE),
        (seeds(-0.50, -0.52, -0.49), 0.1, Conclusion.BETTER),
        (seeds(-0.50, -0.52, -0.49), None, Conclusion.BETTER),
        # real and too small to matter
        (seeds(-0.050, -0.052, -0.049), 0.1, Conclusion.EQUIVALENT),
        (seeds(-0.01, 0.02, -0.01, 0.01), 0.1, Conclusion.EQUIVALENT),
        (seeds(-0.01, 0.02, -0.01, 0.01), None, Conclusion.UNDECIDED),
        (seeds(-0.3, 0.4, -0.1), 0.1, Conclusion.UNDECIDED),
        # two equal seeds are no evidence, of either
        (seeds(-0.3, -0.3), 0.1, Conclusion.UNDECIDED),
        (seeds(0.0, 0.0), 0.1, Conclusion.UNDECIDED),
        (paired_bootstrap(np.array([1.0]), np.array([0.0])), 5.0, Conclusion.UNDECIDED),
    ],
)
def test_what_may_be_concluded(
    found: PairedDifference, margin: float | None, expected: Conclusion
) -> None:
    assert conclude(found, margin, higher_is_better=False) is expected


def test_over_items_alone_errors_are_normal() -> None:
    found = PairedDifference(0.1, 0.05, 0.0, 0.2, 0.05, "paired-bootstrap")
    assert equivalence(found, 0.2).p == pytest.approx(stats.norm.sf(2))
    assert equivalence(found, 0.2).high == pytest.approx(0.1 + 0.05 * stats.norm.ppf(0.95))


@pytest.mark.parametrize("margin", [0.0, -1.0, math.nan])
def test_a_margin_is_above_zero(margin: float) -> None:
    with pytest.raises(ValueError, match="above zero"):
        equivalence(seeds(1.0, 2.0), margin)
