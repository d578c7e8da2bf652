"""How large an effect n paired seeds can show, and how many seeds an effect needs.

The test is Student's t over paired differences (``paired_by_seed``); its power is exact, from the
noncentral t distribution: given the sample's standard deviation, s times the true one, the mean is
normal, and s has the density of a root mean square of n - 1 standard normal numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from wuneng.statistics.estimates import Array
from wuneng.statistics.student import t_quantile

__all__ = ["equivalence_power", "minimum_detectable_effect", "power", "seeds_needed"]

_POINTS = 801  # of the integral over s: its error stays below 1e-7, most with one degree of freedom
_WIDEST = 12.0  # standard deviations of s around its mode that the integral covers


def power(effect: float, spread: float, n: int, *, alpha: float = 0.05) -> float:
    """Probability that a two-sided t-test at ``alpha`` over n paired seeds leaves out zero.

    Args:
        effect: true mean difference, in the figure's unit.
        spread: true standard deviation of the difference from seed to seed, same unit, above zero.
        n: paired seeds, 2 or more.

    Raises:
        ValueError: fewer than two seeds, no spread, or an ``alpha`` outside 0 to 1.
    """
    _check(spread, n, alpha)
    shift = effect * math.sqrt(n) / spread
    limit = t_quantile(1 - alpha, n - 1)
    return _over_spread(n - 1, lambda s: _normal(shift - limit * s) + _normal(-shift - limit * s))


def equivalence_power(
    margin: float, spread: float, n: int, *, effect: float = 0.0, alpha: float = 0.05
) -> float:
    """Probability that two one-sided tests over n paired seeds find a true ``effect`` to lie within
    ``margin`` of zero. Arguments and errors as `power`."""
    _check(spread, n, alpha)
    scale = math.sqrt(n) / spread
    limit = t_quantile(1 - 2 * alpha, n - 1)
    upper, lower = (margin - effect) * scale, (-margin - effect) * scale
    return _over_spread(
        n - 1, lambda s: np.maximum(0.0, _normal(upper - limit * s) - _normal(lower + limit * s))
    )


def minimum_detectable_effect(
    spread: float, n: int, *, wanted: float = 0.8, alpha: float = 0.05
) -> float:
    """The smallest true difference that n paired seeds show with probability ``wanted``.

    Args:
        spread: standard deviation of the difference from seed to seed; the result has its unit
            and grows with it in proportion.
        wanted: the power, between ``alpha`` and 1.

    Raises:
        ValueError: as `power`; or ``wanted`` is not between ``alpha`` and 1.
    """
    _check(spread, n, alpha)
    if not alpha < wanted < 1:
        raise ValueError(f"the wanted power must lie between {alpha} and 1, got {wanted}")
    low, high = 0.0, 1.0
    while power(high, 1.0, n, alpha=alpha) < wanted:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        if power(middle, 1.0, n, alpha=alpha) < wanted:
            low = middle
        else:
            high = middle
    return high * spread


def seeds_needed(
    effect: float, spread: float, *, wanted: float = 0.8, alpha: float = 0.05, most: int = 1000
) -> int | None:
    """The fewest paired seeds that show ``effect`` with probability ``wanted``; None where ``most``
    are too few. Raises ValueError as `minimum_detectable_effect`."""
    _check(spread, 2, alpha)
    if power(effect, spread, most, alpha=alpha) < wanted:
        return None
    low, high = 1, most
    while high - low > 1:
        middle = (low + high) // 2
        if power(effect, spread, middle, alpha=alpha) < wanted:
            low = middle
        else:
            high = middle
    return high


def _check(spread: float, n: int, alpha: float) -> None:
    if n < 2:
        raise ValueError(f"a spread over seeds takes two or more, got {n}")
    if not (spread > 0 and math.isfinite(spread)):
        raise ValueError(f"the spread must be above zero, got {spread}")
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha must lie between 0 and 0.5, got {alpha}")


def _over_spread(freedom: int, given: Callable[[Array], Array]) -> float:
    """The mean of ``given(s)`` over s = sqrt(chi²/freedom), by Simpson's rule."""
    width = _WIDEST / math.sqrt(2 * freedom)
    low, high = max(0.0, 1 - width), 1 + width
    s = np.linspace(low, high, _POINTS)
    log_density = np.full_like(s, -np.inf) if freedom > 1 else np.zeros_like(s)
    inside = s > 0
    log_density[inside] = (freedom - 1) * np.log(s[inside]) - freedom * s[inside] ** 2 / 2
    weights = np.full(_POINTS, 2.0)
    weights[1::2] = 4.0
    weights[[0, -1]] = 1.0
    weights *= np.exp(log_density - log_density.max())
    return float(np.clip((weights * given(s)).sum() / weights.sum(), 0.0, 1.0))


def _normal(x: Array) -> Array:
    """The standard normal distribution function."""
    return np.array([0.5 * math.erfc(-one / math.sqrt(2)) for one in x])
