"""Estimates, paired differences, tests and corrections for evaluation results. Numpy only.

Every metric here is a function of a ratio of sums over items, ``x = Σ values / Σ weights``:

    scale "mean"        x                 accuracies (weights one), any per-item score
    scale "perplexity"  exp(-x)           values: log-likelihoods in nats; weights: one, or tokens
    scale "bits"        -x / ln 2         values: log-likelihoods in nats; weights: bytes

so one delta-method standard error and one bootstrap serve all of them. Pairing matters more than
any of it: two models answer the same items, and most of the variance is the items' own.

Sources: McNemar (1947), exact conditional form; Bonett and Price (2012), "Adjusted Wald confidence
interval for a difference of binomial proportions based on paired data"; Efron and Tibshirani
(1993), percentile bootstrap; Holm (1979).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Estimate",
    "PairedDifference",
    "Scale",
    "estimate",
    "holm",
    "mcnemar_exact",
    "paired_accuracy_difference",
    "paired_bootstrap",
]

Scale = Literal["mean", "perplexity", "bits"]
Array = NDArray[np.float64]

RESAMPLES = 5000
# Indices drawn at once: bounds the bootstrap's memory whatever the number of items.
_INDICES_PER_CHUNK = 2_000_000
_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """A metric's value and its standard error (``None`` when there is only one item)."""

    value: float
    stderr: float | None


@dataclass(frozen=True)
class PairedDifference:
    """Model minus baseline on the same items, with a 95 % interval and a two-sided p-value."""

    difference: float
    low: float
    high: float
    p: float
    test: Literal["mcnemar-exact", "paired-bootstrap"]


def estimate(values: Array, weights: Array | None = None, scale: Scale = "mean") -> Estimate:
    """The metric over items and its delta-method standard error.

    Args:
        values: per-item numerators `[n]`, float.
        weights: per-item denominators `[n]`, positive in sum; ones when left out.
        scale: how the ratio of sums becomes the metric (see the module's docstring).

    Returns:
        With unit weights and scale "mean" the error is the sample standard deviation over √n.

    Raises:
        ValueError: no items, or lengths that differ.
    """
    values, weights = _checked(values, weights)
    n, total = len(values), float(weights.sum())
    ratio = float(values.sum()) / total
    value = float(_scaled(np.asarray(ratio), scale))
    if n < 2:
        return Estimate(value, None)
    residual = values - ratio * weights
    ratio_error = math.sqrt(n / (n - 1) * float((residual**2).sum())) / total
    slope = {"mean": 1.0, "perplexity": value, "bits": 1.0 / math.log(2.0)}[scale]
    return Estimate(value, slope * ratio_error)


def mcnemar_exact(only_model: int, only_baseline: int) -> float:
    """Two-sided exact McNemar p-value from the two discordant counts.

    Args:
        only_model: items that the model alone gets right.
        only_baseline: items that the baseline alone gets right.

    Returns:
        `min(1, 2 P(X <= min))` for X binomial(n = sum, 1/2); 1.0 when nothing is discordant.
    """
    n = only_model + only_baseline
    if n == 0:
        return 1.0
    fewest = min(only_model, only_baseline)
    # Log space: 2^-n underflows from about a thousand discordant items.
    log_terms = [_log_choose(n, k) - n * math.log(2.0) for k in range(fewest + 1)]
    return min(1.0, 2.0 * math.fsum(math.exp(term) for term in log_terms))


def paired_accuracy_difference(model: Array, baseline: Array) -> PairedDifference:
    """Difference of two accuracies on the same items: exact McNemar and Bonett–Price interval.

    Args:
        model: 1 where the model is right, else 0, `[n]`.
        baseline: the same for the baseline, item by item.

    Raises:
        ValueError: no items, lengths that differ, or values other than 0 and 1.
    """
    _check_paired(model, baseline)
    if not np.isin(model, (0.0, 1.0)).all() or not np.isin(baseline, (0.0, 1.0)).all():
        raise ValueError("accuracy outcomes must be 0 or 1")
    n = len(model)
    only_model = int(np.sum((model == 1) & (baseline == 0)))
    only_baseline = int(np.sum((model == 0) & (baseline == 1)))
    # One pseudo-item in each discordant cell keeps the interval from collapsing to a point
    # when few items differ, which the plain Wald interval does.
    share_model, share_baseline = (only_model + 1) / (n + 2), (only_baseline + 1) / (n + 2)
    centre = share_model - share_baseline
    spread = math.sqrt((share_model + share_baseline - centre**2) / (n + 2))
    return PairedDifference(
        difference=(only_model - only_baseline) / n,
        low=max(-1.0, centre - _Z95 * spread),
        high=min(1.0, centre + _Z95 * spread),
        p=mcnemar_exact(only_model, only_baseline),
        test="mcnemar-exact",
    )


def paired_bootstrap(
    model: Array,
    baseline: Array,
    *,
    model_weights: Array | None = None,
    baseline_weights: Array | None = None,
    scale: Scale = "mean",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> PairedDifference:
    """Difference of two metrics, its percentile interval and p-value, resampling whole items.

    Args:
        model, baseline: per-item numerators `[n]`, item by item.
        model_weights, baseline_weights: per-item denominators `[n]`; ones when left out.
        scale: how a ratio of sums becomes the metric.
        seed: of the resampling; the same seed gives the same interval.
        resamples: bootstrap samples; the smallest possible p is 2 / (resamples + 1).

    Raises:
        ValueError: no items, or lengths that differ.
    """
    _check_paired(model, baseline)
    model, model_weights = _checked(model, model_weights)
    baseline, baseline_weights = _checked(baseline, baseline_weights)
    n = len(model)
    generator = np.random.default_rng(seed)
    per_chunk = max(1, _INDICES_PER_CHUNK // n)
    chunks = []
    for start in range(0, resamples, per_chunk):
        rows = generator.integers(0, n, size=(min(per_chunk, resamples - start), n))
        ours = model[rows].sum(axis=1) / model_weights[rows].sum(axis=1)
        theirs = baseline[rows].sum(axis=1) / baseline_weights[rows].sum(axis=1)
        chunks.append(_scaled(ours, scale) - _scaled(theirs, scale))
    differences = np.concatenate(chunks)
    low, high = np.quantile(differences, (0.025, 0.975))
    tail = min(int(np.sum(differences <= 0)), int(np.sum(differences >= 0)))
    observed = (
        estimate(model, model_weights, scale).value
        - estimate(baseline, baseline_weights, scale).value
    )
    p = min(1.0, 2.0 * (tail + 1) / (resamples + 1))
    return PairedDifference(observed, float(low), float(high), p, "paired-bootstrap")


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given.

    The adjusted value may be compared with 0.05 directly; the family-wise error rate then stays
    at 5 % however the tests depend on each other.
    """
    count = len(p_values)
    adjusted = [0.0] * count
    running = 0.0
    for rank, index in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def _scaled(ratio: Array, scale: Scale) -> Array:
    if scale == "perplexity":
        return np.exp(-ratio)
    if scale == "bits":
        return -ratio / math.log(2.0)
    return ratio


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _checked(values: Array, weights: Array | None) -> tuple[Array, Array]:
    values = np.asarray(values, dtype=np.float64)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, dtype=np.float64)
    if len(values) == 0:
        raise ValueError("no items to aggregate")
    if values.shape != weights.shape:
        raise ValueError(f"values {values.shape} and weights {weights.shape} differ in shape")
    return values, weights


def _check_paired(model: Array, baseline: Array) -> None:
    if len(model) != len(baseline):
        raise ValueError(f"paired items differ in number: {len(model)} and {len(baseline)}")
    if len(model) == 0:
        raise ValueError("no items to compare")
