"""Power and the smallest effect that shows: against scipy's noncentral t and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from wuneng.statistics import (
    equivalence_power,
    minimum_detectable_effect,
    power,
    seeds_needed,
    t_quantile,
)


@pytest.mark.parametrize("n", [2, 3, 5, 10, 40])
@pytest.mark.parametrize("effect", [0.0, 0.5, -1.0, 3.0])
def test_power_is_the_noncentral_t_distributions(n: int, effect: float) -> None:
    limit, shift = stats.t.ppf(0.975, n - 1), effect * math.sqrt(n)
    exact = stats.nct.sf(limit, n - 1, shift) + stats.nct.cdf(-limit, n - 1, shift)
    assert power(effect * 0.02, 0.02, n) == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("n", [3, 5, 8])
def test_the_smallest_effect_shows_in_eight_studies_of_ten(n: int) -> None:
    effect = minimum_detectable_effect(0.3, n)
    studies = np.random.default_rng(n).normal(effect, 0.3, (20_000, n))
    half = t_quantile(0.95, n - 1) * studies.std(axis=1, ddof=1) / math.sqrt(n)
    shown = np.abs(studies.mean(axis=1)) > half
    assert shown.mean() == pytest.approx(0.8, abs=0.01)


def test_equivalence_shows_as_often_as_said() -> None:
    studies = np.random.default_rng(1).normal(0.1, 0.5, (20_000, 6))
    half = t_quantile(0.9, 5) * studies.std(axis=1, ddof=1) / math.sqrt(6)
    means = studies.mean(axis=1)
    within = (means + half < 0.6) & (means - half > -0.6)
    promised = equivalence_power(0.6, 0.5, 6, effect=0.1)
    assert within.mean() == pytest.approx(promised, abs=0.01)
    assert 0.3 < promised < 0.9


def test_as_many_seeds_as_needed_and_no_more() -> None:
    n = seeds_needed(0.5, 0.4)
    assert n is not None
    assert power(0.5, 0.4, n) >= 0.8 > power(0.5, 0.4, n - 1)
    assert seeds_needed(50.0, 0.4) == 2
    assert seeds_needed(0.001, 1.0) is None


@pytest.mark.parametrize(
    ("spread", "n", "wanted", "message"),
    [
        (1.0, 1, 0.8, "two or more, got 1"),
        (0.0, 5, 0.8, "above zero, got 0.0"),
        (math.nan, 5, 0.8, "above zero, got nan"),
        (1.0, 5, 1.0, "between 0.05 and 1, got 1.0"),
        (1.0, 5, 0.05, "between 0.05 and 1, got 0.05"),
    ],
)
def test_what_has_no_power_is_refused(spread: float, n: int, wanted: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        minimum_detectable_effect(spread, n, wanted=wanted)
