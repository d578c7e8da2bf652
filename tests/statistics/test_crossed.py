"""Seeds and items at once: components, intervals that cover, tests wrong one time in 20."""

from __future__ import annotations

import math

import numpy as np
import pytest

from wuneng.statistics import (
    components,
    crossed_components,
    crossed_difference,
    paired_by_seed,
    power,
)
from wuneng.statistics.components import resampled_variance


def table(
    generator: np.random.Generator, shape: tuple[int, int], seed: float, item: float, rest: float
) -> np.ndarray:
    """Normal effects with these standard deviations."""
    seeds, items = shape
    return (
        seed * generator.normal(size=(seeds, 1))
        + item * generator.normal(size=(1, items))
        + rest * generator.normal(size=shape)
    )


def test_components_are_found_again() -> None:
    generator = np.random.default_rng(0)
    found = [components(table(generator, (6, 50), 0.5, 0.8, 1.0)) for _ in range(400)]
    for name, truth in (("seed", 0.25), ("item", 0.64), ("rest", 1.0)):
        assert np.mean([getattr(one, name) for one in found]) == pytest.approx(truth, rel=0.06)
    error = np.mean([one.stderr**2 for one in found])
    assert error == pytest.approx(0.25 / 6 + 0.64 / 50 + 1 / 300, rel=0.06)
    of_seeds = np.mean([one.share_of_seeds * one.stderr**2 for one in found])
    assert of_seeds == pytest.approx(0.25 / 6 + 1 / 300, rel=0.06)


def test_without_items_of_their_own_it_is_the_paired_t_test() -> None:
    """Items that are alike for all seeds leave the seeds' spread alone, as ``paired_by_seed``."""
    seeds = np.array([0.2, 0.5, 0.1, 0.4])
    model, baseline = np.tile(seeds[:, None], (1, 30)), np.zeros((4, 30))
    found, expected = crossed_difference(model, baseline), paired_by_seed(seeds, np.zeros(4))
    assert found.freedom == expected.freedom == 3
    assert found.stderr == pytest.approx(expected.stderr, rel=0.04)  # the resampling's own noise
    assert found.difference == pytest.approx(expected.difference)


def test_weighted_metrics_are_resampled_as_they_are() -> None:
    """Bits per byte: the difference is that of the seeds' metrics, the error the direct one."""
    generator = np.random.default_rng(3)
    sizes = generator.integers(20, 200, 80).astype(float)
    theirs = -sizes * (1.4 + table(generator, (5, 80), 0.01, 0.2, 0.05))
    ours = theirs + sizes * (0.05 + table(generator, (5, 80), 0.01, 0.02, 0.03))
    found = crossed_difference(ours, theirs, weights=sizes, scale="bits")
    by_seed = -(ours - theirs).sum(axis=1) / sizes.sum() / math.log(2)
    assert found.difference == pytest.approx(by_seed.mean())
    split = crossed_components(ours, theirs, weights=sizes, scale="bits")
    assert found.stderr == pytest.approx(split.stderr, rel=0.06)
    assert found.low < found.difference < found.high < 0
    assert found.p < 0.05


@pytest.mark.parametrize(
    ("seeds", "effects"),
    [(3, (0.4, 0.0, 1.0)), (5, (0.3, 0.7, 1.0))],
    ids=["three seeds alone", "five seeds and items"],
)
def test_two_thousand_null_studies_are_wrong_one_time_in_twenty(
    seeds: int, effects: tuple[float, float, float]
) -> None:
    generator = np.random.default_rng(11)
    wrong = 0
    for study in range(2000):
        baseline = generator.normal(size=(seeds, 40))
        model = baseline + table(generator, (seeds, 40), *effects)
        found = crossed_difference(model, baseline, resamples=150, seed=study)
        assert (found.p < 0.05) == (not found.low <= 0 <= found.high)
        wrong += found.p < 0.05
    assert 0.04 <= wrong / 2000 <= 0.06


def test_the_test_over_seeds_has_its_error_and_its_power() -> None:
    generator = np.random.default_rng(5)
    for effect, studies, within in ((0.0, 2000, 0.01), (0.8, 800, 0.04)):
        differences = generator.normal(effect, 0.6, (studies, 5))
        shown = [paired_by_seed(one, np.zeros(5)).p < 0.05 for one in differences]
        assert np.mean(shown) == pytest.approx(power(effect, 0.6, 5), abs=within)


def test_what_resampling_tends_to() -> None:
    generator = np.random.default_rng(2)
    values = table(generator, (4, 7), 1.0, 1.0, 1.0)
    means = []
    for _ in range(8000):
        seeds, items = generator.integers(0, 4, 4), generator.integers(0, 7, 7)
        means.append(values[np.ix_(seeds, items)].mean())
    assert np.var(means) == pytest.approx(resampled_variance(values), rel=0.06)


def test_equal_differences_show_no_more_than_their_signs() -> None:
    found = crossed_difference(np.ones((3, 5)), np.zeros((3, 5)))
    assert (found.difference, found.p) == (1.0, 0.25)
    assert found.low <= 0


@pytest.mark.parametrize(
    ("model", "baseline", "weights", "message"),
    [
        (np.ones((1, 9)), np.ones((1, 9)), None, r"two or more of each, got \(1, 9\)"),
        (np.ones((3, 9)), np.ones((3, 8)), None, r"got \(3, 9\) and \(3, 8\)"),
        (np.ones((3, 9)), np.ones((3, 9)), np.ones(4), r"weights \(4,\) do not fit"),
    ],
)
def test_what_is_no_table_is_refused(
    model: np.ndarray, baseline: np.ndarray, weights: np.ndarray | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        crossed_difference(model, baseline, weights=weights)
