"""Student's t distribution: what an interval over three seeds needs and numpy does not have."""

from __future__ import annotations

import math

__all__ = ["t_quantile", "t_two_sided"]

_TERMS = 300
_PRECISION = 1e-15


def t_two_sided(t: float, freedom: float) -> float:
    """P(|T| >= |t|) for T with ``freedom`` >= 1 degrees of freedom."""
    return _incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5)


def t_quantile(confidence: float, freedom: float) -> float:
    """The t with P(|T| <= t) = ``confidence``, 0 < confidence < 1: half an interval's width in
    standard errors."""
    low, high = 0.0, 1.0
    while t_two_sided(high, freedom) > 1 - confidence:
        low, high = high, 2 * high
    while high - low > _PRECISION * 10 * high:
        middle = (low + high) / 2
        if t_two_sided(middle, freedom) > 1 - confidence:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), 0 <= x <= 1."""
    if x <= 0 or x >= 1:
        return min(1.0, max(0.0, x))
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    if x < (a + 1) / (a + b + 2):
        return front * _continued_fraction(x, a, b) / a
    return 1 - front * _continued_fraction(1 - x, b, a) / b


def _continued_fraction(x: float, a: float, b: float) -> float:
    """Its continued fraction by Lentz's method (Numerical Recipes, section 6.4)."""
    tiny = 1e-300
    c = 1.0
    d = 1 / _away_from_zero(1 - (a + b) * x / (a + 1), tiny)
    value = d
    for m in range(1, _TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _away_from_zero(1 + term * d, tiny)
            c = _away_from_zero(1 + term / c, tiny)
            value *= d * c
        if abs(d * c - 1) < _PRECISION:
            break
    return value


def _away_from_zero(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny
