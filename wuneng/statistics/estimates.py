"""A metric over items and its standard error: a ratio of sums, on one of three scales."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Array",
    "Estimate",
    "Scale",
    "checked",
    "estimate",
    "linearised",
    "scaled",
    "spread_of_sum",
]

Scale = Literal["mean", "perplexity", "bits"]
Array = NDArray[np.float64]

_LARGEST_EXPONENT = 700.0  # beyond it a perplexity is no float any more


@dataclass(frozen=True)
class Estimate:
    """A metric's value and its standard error (``None`` when there is only one item)."""

    value: float
    stderr: float | None


def estimate(values: Array, weights: Array | None = None, scale: Scale = "mean") -> Estimate:
    """The metric over items and its delta-method standard error.

    Args:
        values: per-item numerators `[n]`, float.
        weights: per-item denominators `[n]`, positive in sum; ones when left out.
        scale: how the ratio of sums becomes the metric (see the package's docstring).

    Returns:
        With unit weights and scale "mean" the error is the sample standard deviation over √n.

    Raises:
        ValueError: no items, or lengths that differ.
    """
    values, weights = checked(values, weights)
    value = float(scaled(np.asarray(values.sum() / weights.sum()), scale))
    if len(values) < 2:
        return Estimate(value, None)
    return Estimate(value, spread_of_sum(linearised(values, weights, scale)))


def linearised(values: Array, weights: Array, scale: Scale) -> Array:
    """What each item contributes to the metric's deviation from its mean, to first order `[n]`."""
    total = float(weights.sum())
    ratio = float(values.sum()) / total
    slope = {
        "mean": 1.0,
        "perplexity": -float(scaled(np.asarray(ratio), "perplexity")),
        "bits": -1.0 / math.log(2.0),
    }[scale]
    return slope * (values - ratio * weights) / total


def spread_of_sum(parts: Array) -> float:
    """Standard error of a sum of `[n]` linearised parts, whose mean is zero."""
    n = len(parts)
    return math.sqrt(n / (n - 1) * float((parts**2).sum()))


def scaled(ratio: Array, scale: Scale) -> Array:
    """A ratio of sums (or many) on the metric's scale."""
    if scale == "perplexity":
        return np.exp(np.minimum(-ratio, _LARGEST_EXPONENT))
    if scale == "bits":
        return -ratio / math.log(2.0)
    return ratio


def checked(values: Array, weights: Array | None) -> tuple[Array, Array]:
    """Both as float64 `[n]`, weights of one where none are given. ValueError as `estimate`."""
    values = np.asarray(values, dtype=np.float64)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, dtype=np.float64)
    if len(values) == 0:
        raise ValueError("no items to aggregate")
    if values.shape != weights.shape:
        raise ValueError(f"values {values.shape} and weights {weights.shape} differ in shape")
    return values, weights
