"""A difference of two arms over seeds and items at once: what holds for other seeds on other items.

Both are resampled whole and crossed, the pigeonhole bootstrap (McCullagh 2000; Owen 2007), so that
any metric of ratios of sums is treated as it is. Its variance is known to be wrong in two ways for
a balanced table: too small by (n - 1)/n for few seeds, and up to three times too large in what a
seed does on one item. Both are put right by the variance components, and the tails are Student's
with their degrees of freedom: five seeds are no normal sample.
"""

from __future__ import annotations

import math

import numpy as np

from wuneng.statistics.components import (
    Components,
    components,
    deviations,
    resampled_variance,
)
from wuneng.statistics.estimates import Array, Scale, scaled
from wuneng.statistics.paired import PairedDifference, of_few
from wuneng.statistics.student import t_quantile, t_two_sided

__all__ = ["crossed_components", "crossed_difference"]

RESAMPLES = 2000
# Entries of the count matrices at once: bounds the memory whatever the number of items.
_ENTRIES_PER_CHUNK = 4_000_000


def crossed_difference(
    model: Array,
    baseline: Array,
    *,
    weights: Array | None = None,
    scale: Scale = "mean",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> PairedDifference:
    """Model minus baseline, paired by seed and item, with an interval over fresh ones of both.

    Args:
        model, baseline: per-item numerators `[seeds, items]`, two or more of each, both arms'
            seeds (data orders) and items in the same order.
        weights: denominators `[seeds, items]` or `[items]` of both; ones when left out.
        scale: how a ratio of sums becomes the metric; a seed's metric is averaged over seeds.
        seed: of the resampling; the same seed gives the same interval.

    Raises:
        ValueError: shapes that differ, or fewer than two seeds or items.
    """
    ours, theirs, weights = _tables(model, baseline, weights)
    observed = _metric(ours, weights, scale).mean() - _metric(theirs, weights, scale).mean()
    table = deviations(ours, weights, scale) - deviations(theirs, weights, scale)
    parts = components(table)
    drawn = _resampled(ours, theirs, weights, scale, seed, resamples)
    biased = resampled_variance(table)
    error = float(drawn.std()) * (parts.stderr / math.sqrt(biased) if biased else 0.0)
    half = t_quantile(0.95, parts.freedom) * error
    p = t_two_sided(float(observed) / error, parts.freedom) if error else float(observed == 0)
    low, high = float(observed) - half, float(observed) + half
    if not error:  # equal differences everywhere: their signs are all that is known
        low, high, p = of_few(len(ours), low, high, p)
    return PairedDifference(
        float(observed), error, low, high, p, "crossed-bootstrap", freedom=parts.freedom
    )


def crossed_components(
    model: Array, baseline: Array, *, weights: Array | None = None, scale: Scale = "mean"
) -> Components:
    """Variance of the difference, split into seeds, items and rest. Arguments and errors as
    `crossed_difference`."""
    ours, theirs, weights = _tables(model, baseline, weights)
    return components(deviations(ours, weights, scale) - deviations(theirs, weights, scale))


def _tables(model: Array, baseline: Array, weights: Array | None) -> tuple[Array, Array, Array]:
    ours, theirs = (np.asarray(one, dtype=np.float64) for one in (model, baseline))
    if ours.shape != theirs.shape or ours.ndim != 2 or min(ours.shape) < 2:
        raise ValueError(
            f"expected two tables [seeds, items] of one shape, two or more of each, got "
            f"{ours.shape} and {theirs.shape}"
        )
    given = np.ones_like(ours) if weights is None else np.asarray(weights, dtype=np.float64)
    if given.shape not in (ours.shape, ours.shape[1:]):
        raise ValueError(f"weights {given.shape} do not fit a table of {ours.shape}")
    return ours, theirs, np.broadcast_to(given, ours.shape)


def _metric(values: Array, weights: Array, scale: Scale) -> Array:
    """Of each seed, `[seeds]`."""
    return scaled(values.sum(axis=1) / weights.sum(axis=1), scale)


def _resampled(
    ours: Array, theirs: Array, weights: Array, scale: Scale, seed: int, resamples: int
) -> Array:
    """The difference in resamples of seeds and items, up to `[resamples]`."""
    generator = np.random.default_rng(seed)
    seeds, items = ours.shape
    per_chunk = max(1, _ENTRIES_PER_CHUNK // items)
    chunks = []
    for start in range(0, resamples, per_chunk):
        count = min(per_chunk, resamples - start)
        of_items = _counts(generator, count, items)
        of_seeds = _counts(generator, count, seeds)
        totals = of_items @ weights.T  # [count, seeds]
        known = (totals > 0).all(axis=1)
        metrics = [scaled(of_items[known] @ one.T / totals[known], scale) for one in (ours, theirs)]
        chunks.append(((metrics[0] - metrics[1]) * of_seeds[known]).sum(axis=1) / seeds)
    return np.concatenate(chunks)


def _counts(generator: np.random.Generator, resamples: int, of: int) -> Array:
    """How often each of ``of`` is drawn in each resample, ``[resamples, of]``."""
    drawn = generator.integers(0, of, size=(resamples, of))
    drawn += np.arange(resamples)[:, None] * of
    return np.bincount(drawn.ravel(), minlength=resamples * of).reshape(resamples, of).astype(float)
