"""What a paired difference allows to be said: better, worse, no difference that matters, or that
it cannot be told.

Superiority is a two-sided test at 5 %. Equivalence is two one-sided tests at 5 % each (Schuirmann
1987): the 90 % interval lies within the smallest effect that matters. Where both hold, a difference
is real and too small to matter, and the conclusion is equivalence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from wuneng.statistics.paired import NORMAL_90, PairedDifference
from wuneng.statistics.student import t_quantile, t_two_sided

__all__ = ["Conclusion", "Equivalence", "conclude", "equivalence"]


class Conclusion(Enum):
    """What is said of model against baseline."""

    BETTER = "better"
    WORSE = "worse"
    EQUIVALENT = "no difference that matters"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests.

    Attributes:
        p: the larger of the two p-values; below 0.05 the difference lies within ``margin``.
        low, high: the 90 % interval that tells the same.
        margin: the smallest effect that matters, in the figure's unit.
    """

    p: float
    low: float
    high: float
    margin: float

    @property
    def shown(self) -> bool:
        """Whether a difference that matters is ruled out."""
        return self.p < 0.05


def equivalence(found: PairedDifference, margin: float) -> Equivalence:
    """Whether a paired difference lies within ``margin`` of zero.

    Args:
        found: with its standard error; without one nothing is shown, and p is 1.
        margin: above zero, in the figure's unit.

    Raises:
        ValueError: the margin is not above zero.
    """
    if not margin > 0:
        raise ValueError(f"the smallest effect must be above zero, got {margin}")
    if found.stderr is None or found.interval is None:
        return Equivalence(1.0, -math.inf, math.inf, margin)
    inside = margin - abs(found.difference)
    if not found.stderr:
        # Equal differences of n seeds: one-sided, their signs alone show no less than 2^-n.
        least = 0.0 if found.freedom is None else 2.0 ** -(found.freedom + 1)
        value = found.difference
        return Equivalence(least if inside > 0 else 1.0, value, value, margin)
    t = inside / found.stderr
    if found.freedom is None:
        half, p = NORMAL_90 * found.stderr, 0.5 * math.erfc(t / math.sqrt(2))
    else:
        half, tail = t_quantile(0.9, found.freedom) * found.stderr, t_two_sided(t, found.freedom)
        p = tail / 2 if t > 0 else 1 - tail / 2
    return Equivalence(p, found.difference - half, found.difference + half, margin)


def conclude(
    found: PairedDifference, margin: float | None, *, higher_is_better: bool
) -> Conclusion:
    """What a paired difference allows to be said of the model against the baseline.

    Args:
        margin: the smallest effect that matters, as `equivalence`; None where none was stated, and
            then nothing is called equivalent.
    """
    if margin is not None and equivalence(found, margin).shown:
        return Conclusion.EQUIVALENT
    if found.p >= 0.05 or found.low <= 0 <= found.high:
        return Conclusion.UNDECIDED
    better = (found.difference > 0) == higher_is_better
    return Conclusion.BETTER if better else Conclusion.WORSE
