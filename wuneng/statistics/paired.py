"""Differences of two models on the same items, and of two arms over the same seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from wuneng.statistics.estimates import (
    Array,
    Scale,
    checked,
    estimate,
    linearised,
    scaled,
    spread_of_sum,
)
from wuneng.statistics.student import t_quantile, t_two_sided

__all__ = [
    "NORMAL_90",
    "NORMAL_95",
    "PairedDifference",
    "mcnemar_exact",
    "of_few",
    "paired_accuracy_difference",
    "paired_bootstrap",
    "paired_by_seed",
    "paired_difference",
]

NORMAL_95 = 1.959963984540054
"""Half the width of a 95 % interval in standard errors, where errors are normal."""
NORMAL_90 = 1.6448536269514722
RESAMPLES = 5000
# Indices drawn at once: bounds the bootstrap's memory whatever the number of items.
_INDICES_PER_CHUNK = 2_000_000

Test = Literal["mcnemar-exact", "paired-bootstrap", "paired-t", "crossed-bootstrap"]


@dataclass(frozen=True)
class PairedDifference:
    """Model minus baseline on the same items (or seeds), with a 95 % interval and a two-sided
    p-value. ``stderr`` is None where there is only one item; a metric of one item that is neither
    right nor wrong has no interval either: ``low`` and ``high`` are infinite, and p is 1.
    ``freedom``: degrees of freedom of Student's t; None where errors are normal."""

    difference: float
    stderr: float | None
    low: float
    high: float
    p: float
    test: Test
    freedom: float | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """``low`` and ``high``; None where they are infinite, which JSON cannot spell."""
        return (self.low, self.high) if math.isfinite(self.high - self.low) else None


def paired_difference(
    model: Array,
    baseline: Array,
    *,
    model_weights: Array | None = None,
    baseline_weights: Array | None = None,
    scale: Scale = "mean",
) -> PairedDifference:
    """Difference of two metrics on the same items, by the test that suits them: exact McNemar
    where every item is right or wrong, else the bootstrap. Arguments as `paired_bootstrap`."""
    weights = (model_weights, baseline_weights)
    plain = all(one is None or bool((np.asarray(one) == 1).all()) for one in weights)
    binary = all(bool(np.isin(one, (0.0, 1.0)).all()) for one in (model, baseline))
    if scale == "mean" and plain and binary:
        return paired_accuracy_difference(model, baseline)
    return paired_bootstrap(
        model,
        baseline,
        model_weights=model_weights,
        baseline_weights=baseline_weights,
        scale=scale,
    )


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
        stderr=_paired_error((model, None), (baseline, None), "mean"),
        low=max(-1.0, centre - NORMAL_95 * spread),
        high=min(1.0, centre + NORMAL_95 * spread),
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
        resamples: bootstrap samples; those in which the weights of either side sum to zero have
            no metric and are left out. The smallest possible p is 2 / (resamples + 1), and with
            few items that of their signs, 2^(1 - n).

    Raises:
        ValueError: no items, lengths that differ, or weights that sum to zero.
    """
    _check_paired(model, baseline)
    model, model_weights = checked(model, model_weights)
    baseline, baseline_weights = checked(baseline, baseline_weights)
    if not (model_weights.sum() > 0 and baseline_weights.sum() > 0):
        raise ValueError("the weights sum to zero")
    n = len(model)
    generator = np.random.default_rng(seed)
    per_chunk = max(1, _INDICES_PER_CHUNK // n)
    chunks = []
    for start in range(0, resamples, per_chunk):
        rows = generator.integers(0, n, size=(min(per_chunk, resamples - start), n))
        ours, theirs = model_weights[rows].sum(axis=1), baseline_weights[rows].sum(axis=1)
        known = (ours > 0) & (theirs > 0)
        ours = model[rows[known]].sum(axis=1) / ours[known]
        theirs = baseline[rows[known]].sum(axis=1) / theirs[known]
        chunks.append(scaled(ours, scale) - scaled(theirs, scale))
    differences = np.concatenate(chunks)
    low, high = np.quantile(differences, (0.025, 0.975))
    tail = min(int(np.sum(differences <= 0)), int(np.sum(differences >= 0)))
    low, high, p = of_few(n, low, high, 2.0 * (tail + 1) / (len(differences) + 1))
    observed = (
        estimate(model, model_weights, scale).value
        - estimate(baseline, baseline_weights, scale).value
    )
    return PairedDifference(
        difference=observed,
        stderr=_paired_error((model, model_weights), (baseline, baseline_weights), scale),
        low=low,
        high=high,
        p=p,
        test="paired-bootstrap",
    )


def paired_by_seed(model: Array, baseline: Array) -> PairedDifference:
    """Mean difference of two arms over the seeds that both were trained from, by Student's t.

    Seeds are few, so the interval is as wide as n - 1 degrees of freedom make it.

    Args:
        model, baseline: one figure for each seed `[n]`, n of 2 or more, seed by seed.

    Raises:
        ValueError: fewer than two seeds, or numbers of them that differ.
    """
    _check_paired(model, baseline)
    n = len(model)
    if n < 2:
        raise ValueError("one seed has no spread over seeds")
    differences = np.asarray(model, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    value = float(differences.mean())
    error = float(differences.std(ddof=1)) / math.sqrt(n)
    half = t_quantile(0.95, n - 1) * error
    low, high = value - half, value + half
    if error:
        p = t_two_sided(value / error, n - 1)
    else:  # equal differences: their signs are all that is known
        low, high, p = of_few(n, low, high, float(value == 0))
    return PairedDifference(value, error, low, high, p, "paired-t", freedom=n - 1)


def of_few(n: int, low: float, high: float, p: float) -> tuple[float, float, float]:
    """Interval and p-value with what n items can show at most.

    Resampling items that all point one way never meets zero. Chance gives n items one sign with
    probability 2^(1 - n): no p is smaller, and where that is above 0.05 the interval holds zero.
    """
    if n == 1:
        return -math.inf, math.inf, 1.0
    smallest = 2.0 ** (1 - n)
    if smallest > 0.05:
        low, high = min(low, 0.0), max(high, 0.0)
    return float(low), float(high), min(1.0, max(p, smallest))


def _paired_error(
    model: tuple[Array, Array | None], baseline: tuple[Array, Array | None], scale: Scale
) -> float | None:
    """Delta-method standard error of a difference, item by item."""
    if len(model[0]) < 2:
        return None
    ours, theirs = (linearised(*checked(*one), scale) for one in (model, baseline))
    return spread_of_sum(ours - theirs)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _check_paired(model: Array, baseline: Array) -> None:
    if len(model) != len(baseline):
        raise ValueError(f"paired items differ in number: {len(model)} and {len(baseline)}")
    if len(model) == 0:
        raise ValueError("no items to compare")
