"""How far two arms of results.json are apart, and whether that is more than noise.

Paired where the run has that (over rows, or over seeds), else from the two arms' own errors. One
seed knows nothing of how much another would have moved: a difference counts as *clear* where it is
larger than its error and the allowance for unseen seeds (``verdicts``) together, and as one *on
these rows* where only its interval leaves out zero. Several seeds need no allowance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wuneng.statistics import NORMAL_95
from wuneng.train.verdicts import Figure, better_by, figure

__all__ = ["ONLY_ON_THESE_ROWS", "Difference", "difference", "in_numbers", "spelled"]

ONLY_ON_THESE_ROWS = " on these rows, by no more than another seed may move it"


@dataclass(frozen=True)
class Difference:
    """First minus second arm.

    Attributes:
        interval: 95 %, of the paired difference; None where nothing is paired.
        clear: whether it is more than noise, other seeds' included.
        better: whether the first arm is the better one, whatever the noise.
        paired: "512 rows" or "3 seeds"; empty where nothing is paired.
    """

    value: float
    interval: tuple[float, float] | None
    clear: bool
    better: bool
    paired: str = ""

    @property
    def on_these_rows(self) -> bool:
        """Whether the interval leaves out zero, whatever other seeds would do."""
        return self.interval is not None and self.interval[0] * self.interval[1] > 0

    @property
    def gain(self) -> float:
        """How much better the first arm is (negative: worse); 0.0 within noise."""
        if not self.clear:
            return 0.0
        return abs(self.value) if self.better else -abs(self.value)


def difference(results: Mapping[str, Any], first: str, second: str, name: str) -> Difference:
    """The difference of two arms in figure ``name``."""
    one, other = (figure(results["arms"][arm], name) for arm in (first, second))
    found = _paired(results, first, second, name)
    if found is None:
        value = one.value - other.value
        return Difference(value, None, better_by(one, other) != 0.0, _better(value, one))
    value, error, interval, pair = found
    if "seeds" in pair:
        clear = interval[0] * interval[1] > 0
        return Difference(value, interval, clear, _better(value, one), f"{pair['seeds']} seeds")
    unseen = math.sqrt(2) * _unseen(results, first, name, one)
    clear = abs(value) > NORMAL_95 * math.hypot(error, unseen)
    rows = f"{pair['rows']:,} rows" if "rows" in pair else ""
    return Difference(value, interval, clear, _better(value, one), rows)


def spelled(found: Difference) -> str:
    """``difference -0.1030, 95 % interval -0.1079 to -0.0982``."""
    word = ", 95 % interval " if found.interval else ""
    value, _, interval = in_numbers(found).partition(" ")
    return f"difference {value}{word}{interval.strip('()')}"


def in_numbers(found: Difference, digits: int = 4) -> str:
    """``-0.1030 (-0.1079 to -0.0982)``; without an interval the value alone."""
    text = f"{found.value:+.{digits}f}"
    if found.interval:
        text += f" ({found.interval[0]:+.{digits}f} to {found.interval[1]:+.{digits}f})"
    return text


def _better(value: float, of: Figure) -> bool:
    return value > 0 if of.higher_is_better else value < 0


def _paired(
    results: Mapping[str, Any], first: str, second: str, name: str
) -> tuple[float, float, tuple[float, float], Mapping[str, Any]] | None:
    """Value, standard error and interval of first minus second, and the entry itself."""
    for pair in results.get("paired", ()):
        if pair["figure"] == name and set(pair["arms"]) == {first, second}:
            value, error = pair["difference"], pair["standard_error"]
            half = NORMAL_95 * error
            low, high = pair.get("interval", (value - half, value + half))
            if pair["arms"][0] == first:
                return value, error, (low, high), pair
            return -value, error, (-high, -low), pair
    return None


def _unseen(results: Mapping[str, Any], arm: str, name: str, honest: Figure) -> float:
    """The part of a figure's error that stands for other seeds."""
    own = float(results["arms"][arm].get("standard_error", {}).get(name, 0.0))
    return math.sqrt(max(0.0, honest.standard_error**2 - own**2))
