"""Loss against parameters and tokens: a power law per arm, with bootstrap bands.

    L(N, D) = E + C · N^-α · D^-β            (E: what no size and no data removes, 0 or above)

The logarithm of L - E is linear in those of N and D, so E alone is searched for, and only where
there are more different (N, D) than numbers to be found; else E is 0. What a ladder does not vary
has no exponent. The bands resample whole seeds: of one seed there are none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wuneng.statistics.estimates import Array

__all__ = ["Point", "ScalingFit", "fit_scaling", "scaling_bands"]

_OFFSETS = 200  # values of E that are tried, from 0 to just below the smallest loss


@dataclass(frozen=True)
class Point:
    """One trained model: which seed, how large, on how much, and where it ended."""

    seed: int
    parameters: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class ScalingFit:
    """Attributes: ``offset`` E, ``log_scale`` ln C, ``alpha`` and ``beta``; an exponent is None
    where the ladder has one value only."""

    offset: float
    log_scale: float
    alpha: float | None
    beta: float | None

    def loss(self, parameters: float, tokens: float) -> float:
        """The fitted loss at a size and a number of tokens."""
        power = self.log_scale - (self.alpha or 0.0) * np.log(parameters)
        return float(self.offset + np.exp(power - (self.beta or 0.0) * np.log(tokens)))


def fit_scaling(points: Sequence[Point]) -> ScalingFit | None:
    """Least squares in the logarithm of the loss above E.

    Args:
        points: losses above zero; several seeds of one size and budget are several points.

    Returns:
        None where sizes and budgets do not differ, or too few of them do to tell their effects
        apart (sizes and tokens that only grow together are one thing).
    """
    grid = np.array([(p.parameters, p.tokens) for p in points], dtype=np.float64).reshape(-1, 2)
    losses = np.array([p.loss for p in points], dtype=np.float64)
    if len(points) < 2 or not (losses > 0).all() or not np.isfinite(losses).all():
        return None
    varies = [len(np.unique(grid[:, axis])) > 1 for axis in (0, 1)]
    logs = np.log(grid)[:, varies]
    design = np.column_stack([np.ones(len(grid)), -logs])
    different = len(np.unique(grid, axis=0))
    if not any(varies) or np.linalg.matrix_rank(design) < design.shape[1]:
        return None
    free = different > design.shape[1] + 1
    offsets = np.linspace(0.0, 0.999 * losses.min(), _OFFSETS) if free else np.zeros(1)
    offset, coefficients = _least_squares(design, losses, offsets)
    exponents = iter(coefficients[1:])
    alpha, beta = (float(next(exponents)) if varied else None for varied in varies)
    return ScalingFit(offset, float(coefficients[0]), alpha, beta)


def scaling_bands(
    points: Sequence[Point],
    at: Sequence[tuple[float, float]],
    *,
    seed: int = 0,
    resamples: int = 200,
) -> Array | None:
    """95 % bands of the fitted loss, resampling whole seeds.

    Args:
        at: (parameters, tokens) where the bands are wanted.

    Returns:
        ``[len(at), 2]``, low and high; None with fewer than two seeds, or where nothing fits.
    """
    seeds = sorted({p.seed for p in points})
    if len(seeds) < 2 or fit_scaling(points) is None:
        return None
    of_seed = {own: [p for p in points if p.seed == own] for own in seeds}
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        chosen = generator.choice(seeds, size=len(seeds))
        fit = fit_scaling([point for own in chosen for point in of_seed[int(own)]])
        if fit is not None:
            drawn.append([fit.loss(*place) for place in at])
    return np.quantile(np.array(drawn), (0.025, 0.975), axis=0).T if drawn else None


def _least_squares(design: Array, losses: Array, offsets: Array) -> tuple[float, Array]:
    """The offset ``[offsets]`` with the smallest squared relative error of the loss, and the
    coefficients of the design's columns with it."""
    inverse: Array = np.linalg.pinv(design).astype(np.float64)
    coefficients = inverse @ np.log(losses[:, None] - offsets)
    fitted = offsets + np.exp(design @ coefficients)
    error = ((np.log(fitted) - np.log(losses)[:, None]) ** 2).sum(axis=0)
    best = int(error.argmin())
    return float(offsets[best]), coefficients[:, best]
