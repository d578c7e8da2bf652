"""Loss against parameters and tokens: made-up ladders are found again, bands cover."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from wuneng.statistics import Point, fit_scaling, scaling_bands

SIZES, BUDGETS = (0.3e6, 1e6, 3e6), (4.0, 8.0, 16.0)


def ladder(
    offset: float,
    noise: float = 0.0,
    seeds: int = 1,
    sizes: tuple[float, ...] = SIZES,
    seed: int = 0,
) -> list[Point]:
    generator = np.random.default_rng(seed)
    points = []
    for own in range(seeds):
        luck = noise * generator.normal()
        for n in sizes:
            for ratio in BUDGETS:
                loss = offset + 40 * n**-0.15 * (n * ratio) ** -0.1
                points.append(Point(own, n, n * ratio, loss * float(np.exp(luck))))
    return points


@pytest.mark.parametrize("offset", [0.0, 0.8])
def test_a_ladder_is_found_again(offset: float) -> None:
    fit = fit_scaling(ladder(offset))
    assert fit is not None
    assert fit.offset == pytest.approx(offset, abs=0.01)
    assert fit.alpha == pytest.approx(0.15, abs=0.01)
    assert fit.beta == pytest.approx(0.1, abs=0.01)
    beyond = offset + 40 * 1e7**-0.15 * 1e8**-0.1
    assert fit.loss(1e7, 1e8) == pytest.approx(beyond, rel=0.01)


def test_one_size_has_no_exponent_of_size() -> None:
    fit = fit_scaling(ladder(0.0, sizes=(1e6,)))
    assert fit is not None
    assert fit.alpha is None
    assert fit.beta == pytest.approx(0.1)
    assert fit.offset == 0.0, "three budgets are too few for an irreducible loss"


@pytest.mark.parametrize(
    "points",
    [
        [],
        [Point(0, 1e6, 4e6, 2.0)],
        [Point(0, 1e6, 4e6, 2.0), Point(1, 1e6, 4e6, 2.1)],
        # tokens that grow with the size alone: which of the two was it?
        [Point(0, n, 4 * n, 9 * n**-0.1) for n in SIZES],
        [Point(0, 1e6, 4e6, 2.0), Point(0, 1e6, 8e6, float("nan"))],
    ],
)
def test_what_cannot_be_told_apart_is_not_fitted(points: list[Point]) -> None:
    assert fit_scaling(points) is None
    assert scaling_bands(points, [(1e6, 4e6)]) is None


def test_bands_lie_around_the_fit_and_one_seed_has_none() -> None:
    points = ladder(0.0, noise=0.02, seeds=5)
    fit, bands = fit_scaling(points), scaling_bands(points, [(1e6, 8e6), (3e6, 24e6)])
    assert fit is not None
    assert bands is not None
    for place, (low, high) in zip([(1e6, 8e6), (3e6, 24e6)], bands, strict=True):
        assert low < fit.loss(*place) < high
    assert scaling_bands(ladder(0.0), [(1e6, 8e6)]) is None


#: Seeds of a study, its sizes, what a fresh seed changes, and how many studies are simulated.
STUDIES = [
    (2, SIZES[1:2], "every model alike", 400),
    (3, SIZES[:2], "each model", 400),
    (5, SIZES[1:2], "each model", 300),
    (8, SIZES[:2], "every model alike", 100),
]


def covered(seeds: int, sizes: tuple[float, ...], luck: str, studies: int) -> int:
    """In how many studies the bands of the middle budget hold the true loss."""
    found, truth = 0, 40 * 1e6**-0.15 * 8e6**-0.1
    for study in range(studies):
        points = ladder(0.0, 0.02, seeds, sizes, seed=1000 * seeds + study)
        if luck == "each model":
            generator = np.random.default_rng(study)
            points = [
                replace(point, loss=point.loss * float(np.exp(0.02 * generator.normal())))
                for point in ladder(0.0, 0.0, seeds, sizes)
            ]
        bands = scaling_bands(points, [(1e6, 8e6)], resamples=60)
        assert bands is not None
        found += bool(bands[0, 0] <= truth <= bands[0, 1])
    return found


def test_bands_cover() -> None:
    """Within three standard errors of 95 % in each kind of study, and 93 to 97 % of all."""
    found = {one: covered(*one) / one[-1] for one in STUDIES}
    for (*_, studies), share in found.items():
        assert abs(share - 0.95) <= 3 * (0.95 * 0.05 / studies) ** 0.5, found
    together = sum(one[-1] for one in STUDIES)
    share = sum(one[-1] * part for one, part in found.items()) / together
    assert abs(share - 0.95) <= 3 * (0.95 * 0.05 / together) ** 0.5 < 0.02, found


def test_a_resample_that_is_drawn_often_counts_as_often() -> None:
    """Bands by the definition: every resample fitted anew, of points written out."""
    points = ladder(0.0, 0.05, seeds=3, seed=4)[:-2]  # the last seed lacks two models
    generator = np.random.default_rng(7)
    drawn = []
    for chosen in generator.integers(0, 3, size=(40, 3)):
        fit = fit_scaling([p for own in chosen for p in points if p.seed == own])
        assert fit is not None
        drawn.append(np.log(fit.loss(1e6, 8e6)))
    whole = fit_scaling(points)
    assert whole is not None
    half = stats.t.ppf(0.975, 2) * np.std(drawn) * (3 / 2) ** 0.5
    expected = np.log(whole.loss(1e6, 8e6)) + np.array([-half, half])
    bands = scaling_bands(points, [(1e6, 8e6)], seed=7, resamples=40)
    assert bands is not None
    assert np.log(bands[0]) == pytest.approx(expected, rel=1e-6)
