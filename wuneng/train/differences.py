"""How far two arms of results.json are apart, and whether that is more than noise.

Paired where the run has that (over rows, or over seeds), else from the two arms' own errors. One
seed knows nothing of how much another would have moved: what is *clear* of it is so on these rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wuneng.statistics import NORMAL_95
from wuneng.train.verdicts import Figure, better_by, figure

__all__ = ["ON_THESE_ROWS", "Difference", "difference", "in_numbers", "spelled"]

ON_THESE_ROWS = " on these rows"


@dataclass(frozen=True)
class Difference:
    """First minus second arm.

    Attributes:
        interval: 95 %, of the paired difference; None where nothing is paired.
        clear: whether it is more than noise: of rows where there is one seed, else of seeds.
        better: whether the first arm is the better one, whatever the noise.
        paired: "512 rows" or "3 seeds"; empty where nothing is paired.
    """

    value: float
    interval: tuple[float, float] | None
    clear: bool
    better: bool
    paired: str = ""

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
    value, interval, pair = found
    over = next((f"{pair[key]:,} {key}" for key in ("seeds", "rows") if key in pair), "")
    clear = interval[0] * interval[1] > 0
    return Difference(value, interval, clear, _better(value, one), over)


def spelled(found: Difference) -> str:
    """``difference -0.1030, 95 % interval -0.1079 to -0.0982``."""
    word = ", 95 % interval " if found.interval else ""
    value, _, interval = in_numbers(found).partition(" ")
    return f"difference {value}{word}{interval.strip('()')}"


def in_numbers(found: Difference, digits: int = 4) -> str:
    """``-0.1030 (-0.1079 to -0.0982)``; without an interval the value alone.

    An end keeps its sign where it is rounded to zero: it says whether zero is inside.
    """
    text = f"{found.value:+z.{digits}f}"
    if found.interval:
        low, high = (end + 0.0 for end in found.interval)  # no sign of an end that *is* zero
        text += f" ({low:+.{digits}f} to {high:+.{digits}f})"
    return text


def _better(value: float, of: Figure) -> bool:
    return value > 0 if of.higher_is_better else value < 0


def _paired(
    results: Mapping[str, Any], first: str, second: str, name: str
) -> tuple[float, tuple[float, float], Mapping[str, Any]] | None:
    """Value and interval of first minus second, and the entry itself."""
    for pair in results.get("paired", ()):
        if pair["figure"] == name and set(pair["arms"]) == {first, second}:
            value = pair["difference"]
            half = NORMAL_95 * pair["standard_error"]
            low, high = pair.get("interval", (value - half, value + half))
            if pair["arms"][0] == first:
                return value, (low, high), pair
            return -value, (-high, -low), pair
    return None
