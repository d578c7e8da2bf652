"""Tokens saved as a table and a forest: the headline of a run's page and of a study's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wuneng.report.plots import Interval, forest
from wuneng.report.section import Picture, Section, percent

__all__ = ["saving", "saving_of", "saving_section"]

_LOWEST = -100.0
"""Percent, where pictures end: an arm that needs twice the tokens."""
_WHAT = (
    "How many fewer tokens an arm needs for the loss that the other one ends with: the share of "
    "its tokens, averaged over seeds as logarithms; negative: it needs more. In the middle of its "
    "schedule an arm's learning rate has not decayed yet, so a saving is told too small rather "
    "than too large."
)
_BOUND = (
    "Where an arm never reached that loss, its saving is at most the value shown (marked with an "
    "arrow), and there is no interval."
)
_ALIKE = (
    "Where all seeds came to the same saving, as when each had got there by its first evaluation, "
    "there is no interval."
)
_UNKNOWN = (
    "Cannot be told: no seed of both arms has curves of two evaluations and a last loss that is a "
    "number."
)


def saving(
    saved: float, interval: Sequence[float | None] | None, seeds: int, censored: int
) -> dict[str, Any]:
    """The columns of a saving: ``saved``, ``low`` and ``high`` are shares of the other's tokens.

    Args:
        interval: its ends; None where there is none. Earlier versions wrote one end where the other
            arm's loss was never reached, which is none either.
        censored: seeds in which the other arm's loss was never reached.
    """
    low, high = (None, None) if censored or interval is None else interval
    if low == high:  # of no width, as earlier versions wrote it where all seeds were alike
        low = high = None
    told = f"at most {percent(saved)}" if censored else percent(saved)
    return {
        "saved": saved,
        "low": low,
        "high": high,
        "seeds": seeds,
        "censored": censored,
        "told": told,
    }


def saving_of(record: Mapping[str, Any] | None) -> dict[str, Any]:
    """The columns of a saving as a study's results.json has it, None where curves did not say."""
    if record is None:
        unknown = dict.fromkeys(("saved", "low", "high", "seeds", "censored"))
        return {**unknown, "told": "cannot be told"}
    return saving(*(record[key] for key in ("saved", "interval", "orders", "censored")))


def saving_section(
    key: str, rows: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> Section | None:
    """Table and forest; None without rows.

    Args:
        rows: each with the columns of `saving` or `saving_of` among its own.
        names: of each row, in the picture.
    """
    if not rows:
        return None
    known = [row for row in rows if row["saved"] is not None]
    text = [_WHAT]
    if any(row["censored"] for row in known):
        text.append(_BOUND)
    if any(row["low"] is not None and 100 * row["low"] < _LOWEST for row in known):
        text.append("An interval that the picture cuts off has its end in the table.")
    if len(known) < len(rows):
        text.append(_UNKNOWN)
    if known and all(row["seeds"] == 1 for row in known):
        text.append("One seed: there is no interval over seeds.")
    elif any(not row["censored"] and row["seeds"] > 1 and row["low"] is None for row in known):
        text.append(_ALIKE)
    shown = [_interval(name, row) for name, row in zip(names, rows, strict=True) if row in known]
    pictures = (_forest(shown),) if shown else ()
    return Section(key, "Tokens saved", tuple(text), tuple(rows), pictures)


def _interval(name: str, row: Mapping[str, Any]) -> Interval:
    value, low, high = (
        None if row[end] is None else 100 * row[end] for end in ("saved", "low", "high")
    )
    assert value is not None
    return Interval(name, value, low, high, bound=bool(row["censored"]))


def _forest(shown: Sequence[Interval]) -> Picture:
    told = "; ".join(
        f"{one.name} {'at most ' if one.bound else ''}{one.value:.1f}" for one in shown
    )
    return Picture(
        "tokens saved",
        f"Tokens saved, in percent: {told}",
        lambda axis: _drawn(axis, shown),
        height=1.4 + 0.28 * len(shown),
    )


def _drawn(axis: Any, shown: Sequence[Interval]) -> None:
    """Down to twice the tokens: few seeds' intervals, far below, would hide the other end."""
    forest(axis, shown, x="% of the tokens saved")
    if axis.get_xlim()[0] < _LOWEST:
        axis.set_xlim(left=min(_LOWEST, 1.1 * min(one.value for one in shown)))
