"""Differences between arms with their intervals, as a forest plot; ablations likewise."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from wuneng.report.figures import headline, higher_is_better, judged, pair_of
from wuneng.report.plots import Interval, forest
from wuneng.report.records import Records
from wuneng.report.section import Picture, Section
from wuneng.statistics import holm

__all__ = ["ablations", "differences"]

_FULL = ("hybrid",)


def differences(records: Records) -> Section | None:
    """Every pair of arms that was paired, in every judged figure."""
    paired = (records.results or {}).get("paired") or ()
    figures = dict.fromkeys(pair["figure"] for pair in paired)
    names, decides = judged(figures), headline(records)
    if decides is not None and decides in figures and decides not in names:
        names.insert(0, decides)
    arms = _ordered(records)
    rows = [
        _row(pair, first, second)
        for name in names
        for first, second in combinations(arms, 2)
        if (pair := pair_of(paired, first, second, name)) is not None
    ]
    if not rows:
        return None
    _correct(rows, decides)
    over = "seeds" if any(row["seeds"] for row in rows) else "validation rows, of one seed"
    text = [
        f"First minus second arm, paired over the same {over}, with 95 % intervals. Coloured where "
        "the interval leaves out zero. p (Holm) is corrected over all pairs and all figures but "
        "the one that decides; those are exploratory. A study's results.json corrects within each "
        "pair.",
    ]
    if any(row["crossed_low"] is not None for row in rows):
        text.append(
            "Crossed: the interval over fresh seeds and fresh rows at once, and the part of its "
            "variance that more seeds would lower."
        )
    return Section(
        "differences", "Differences between the arms", tuple(text), tuple(rows), _forests(rows)
    )


def ablations(records: Records) -> Section | None:
    """The main arm against every other arm with state heads, in the figure that decides."""
    name, main = headline(records), records.main
    if name is None or main is None or main not in records.arms:
        return None
    paired = (records.results or {}).get("paired") or ()
    others = [arm for arm, one in records.arms.items() if arm != main and one["kind"] in _FULL]
    rows = []
    for arm in others:
        pair = pair_of(paired, arm, main, name)
        if pair is not None:
            rows.append(_row(pair, arm, main))
    if not rows:
        return None
    text = (
        f"Each other arm with state heads beside attention, minus {main}: what its part is worth.",
    )
    return Section("ablations", "Ablations", text, tuple(rows), _forests(rows))


def _ordered(records: Records) -> list[str]:
    """The main arm first, the baseline last: a difference reads as what the first gains."""
    ends = [records.main], [records.baseline]
    middle = [arm for arm in records.arms if arm not in (records.main, records.baseline)]
    return [arm for arm in [*ends[0], *middle, *ends[1]] if arm is not None and arm in records.arms]


def _row(pair: Any, first: str, second: str) -> dict[str, Any]:
    low, high = pair.get("interval") or (None, None)
    crossed = pair.get("crossed") or {}
    crossed_low, crossed_high = crossed.get("interval") or (None, None)
    return {
        "figure": pair["figure"],
        "arm": first,
        "against": second,
        "difference": pair["difference"],
        "low": low,
        "high": high,
        "p": pair.get("p"),
        "p_holm": None,
        "test": pair.get("test"),
        "seeds": pair.get("seeds"),
        "rows": pair.get("rows") or crossed.get("rows"),
        "crossed_low": crossed_low,
        "crossed_high": crossed_high,
        "share_of_seeds": crossed.get("share_of_seeds"),
    }


def _correct(rows: list[dict[str, Any]], primary: str | None) -> None:
    """Holm's correction over the figures that do not decide."""
    secondary = [row for row in rows if row["figure"] != primary and row["p"] is not None]
    for row, p in zip(secondary, holm([row["p"] for row in secondary]), strict=True):
        row["p_holm"] = p


def _forests(rows: Sequence[dict[str, Any]]) -> tuple[Picture, ...]:
    """Accuracies and losses apart: their differences have other units and other signs."""
    found = []
    for accurate in (True, False):
        own = [row for row in rows if higher_is_better(row["figure"]) is accurate]
        if own:
            found.append(_forest(own, accurate))
    return tuple(found)


def _forest(rows: Sequence[dict[str, Any]], accurate: bool) -> Picture:
    shown = [
        Interval(
            f"{row['figure']}: {row['arm']} − {row['against']}",
            *(row["difference"], row["low"], row["high"]),
        )
        for row in rows
    ]
    better = "right: the first arm is better" if accurate else "left: the first arm is better"
    told = "; ".join(f"{one.name} {one.value:+z.4f}" for one in shown)
    unit = "accuracy" if accurate else "loss"
    return Picture(
        f"differences in {unit}",
        f"Differences in {unit}, {better}: {told}",
        lambda axis: forest(axis, shown, x=f"difference in {unit} ({better})"),
        height=1.3 + 0.26 * len(shown),
    )
