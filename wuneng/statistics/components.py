"""How much of a figure's uncertainty is the seeds' and how much the items'.

Every seed's model answers the same items, a two-way table without repetition:

    x[seed, item] = mean + seed + item + rest        (rest: what a seed does on one item alone)

Its variance components are the usual moment estimators (Searle, Casella and McCulloch 1992,
"Variance components", section 4.4), and the degrees of freedom of the mean's error Satterthwaite's
(1946). With one seed nothing is known of seeds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from wuneng.statistics.estimates import Array, Scale, linearised

__all__ = ["Components", "components", "deviations", "resampled_variance"]


@dataclass(frozen=True)
class Components:
    """Variances of one entry of the table, in the figure's unit squared, never below zero.

    Attributes:
        seed: from seed to seed, whatever the items.
        item: from item to item, whatever the seed.
        rest: of one seed on one item.
        stderr: of the table's mean, over fresh seeds *and* fresh items.
        freedom: degrees of freedom of ``stderr``, 1 or more.
        share_of_seeds: part of ``stderr`` squared that more seeds would lower, 0 to 1; the other
            part takes more items.
    """

    seed: float
    item: float
    rest: float
    stderr: float
    freedom: float
    share_of_seeds: float


def components(table: Array) -> Components:
    """The variance components of a table.

    Args:
        table: `[seeds, items]`, two or more of each.

    Raises:
        ValueError: it is no table, or has fewer.
    """
    table = np.asarray(table, dtype=np.float64)
    if table.ndim != 2 or min(table.shape) < 2:
        raise ValueError(f"expected two seeds and two items or more, got {table.shape}")
    seeds, items = table.shape
    by_seed, by_item, rest = _effects(table)
    freedoms = (seeds - 1, items - 1, (seeds - 1) * (items - 1))
    of_seeds = items * float(by_seed.var(ddof=1))
    of_items = seeds * float(by_item.var(ddof=1))
    of_rest = float((rest**2).sum()) / freedoms[2]
    # Mean squares of the error and their signs. That of the seeds stands as it is, below the
    # rest's too: raised to it, the test of a few seeds would reject far too seldom.
    terms = [(of_seeds, freedoms[0])]
    if of_items > of_rest:
        terms += [(of_items, freedoms[1]), (-of_rest, freedoms[2])]
    total = sum(square for square, _ in terms)
    below = sum(square**2 / freedom for square, freedom in terms)
    return Components(
        seed=max(0.0, of_seeds - of_rest) / items,
        item=max(0.0, of_items - of_rest) / seeds,
        rest=of_rest,
        stderr=math.sqrt(total / table.size),
        freedom=max(1.0, total**2 / below) if below else float(freedoms[0]),
        share_of_seeds=of_seeds / total if total else 0.0,
    )


def resampled_variance(table: Array) -> float:
    """The variance of the mean when seeds and items of this table `[seeds, items]` are drawn with
    replacement, each for itself: what a crossed bootstrap of it tends to."""
    by_seed, by_item, rest = _effects(table)
    parts = (by_seed.var() / len(by_seed), by_item.var() / len(by_item), rest.var() / rest.size)
    return float(sum(parts))


def _effects(table: Array) -> tuple[Array, Array, Array]:
    """Means by seed `[seeds]` and by item `[items]`, and what is left `[seeds, items]`."""
    by_seed, by_item = table.mean(axis=1), table.mean(axis=0)
    return by_seed, by_item, table - by_seed[:, None] - by_item + table.mean()


def deviations(values: Array, weights: Array, scale: Scale) -> Array:
    """A table whose mean over items is, for each seed, its metric's deviation from that of all
    seeds together, to first order.

    Args:
        values, weights: `[seeds, items]`, as ``estimate`` takes them item by item.
        scale: how the ratio of sums becomes the metric.
    """
    parts = linearised(values.ravel(), weights.ravel(), scale)
    return parts.reshape(values.shape) * parts.size
