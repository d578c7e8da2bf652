"""Learning curves with their range over seeds, and the tokens that an arm saves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from wuneng.report.figures import loss_figures, task_of
from wuneng.report.plots import Line, lines
from wuneng.report.records import Records
from wuneng.report.saving import saving, saving_section
from wuneng.report.section import Picture, Section
from wuneng.statistics import Curve, TokensSaved, tokens_saved

__all__ = ["curves", "saved_against", "tokens"]

_CONTROLS = ("shifted attention", "convolved attention")
_TRAINING = "training loss"
#: Points of a curve that a picture and its table have at most.
_MOST_POINTS = 200


def curves(records: Records) -> Section | None:
    """A panel for each task's validation loss, and one of the training loss, which is logged at
    more steps and of other text."""
    names = list(dict.fromkeys([*_names(records), _TRAINING]))
    by_name = {
        name: [row for arm in records.metrics for row in _thinned(_over_seeds(records, arm, name))]
        for name in names
    }
    rows = [row for own in by_name.values() for row in own]
    if not rows:
        return None
    pictures = tuple(_picture(records, name, own) for name, own in by_name.items() if own)
    seeds = max(row["seeds"] for row in rows)
    band = f"mean of {seeds} seeds, band: lowest to highest seed" if seeds > 1 else "one seed"
    text = f"Each arm's loss while it trained, against the tokens that it had seen ({band})."
    return Section("curves", "Learning curves", (text,), tuple(rows), pictures)


def tokens(records: Records) -> Section | None:
    """How many fewer tokens each arm needs for the loss that plain attention, or the control, ends
    with."""
    rows, names = [], []
    for name in _names(records):
        for against in _yardsticks(records):
            for arm in records.metrics:
                found = saved_against(records, arm, against, name)
                if found is None:
                    continue
                told = saving(found.saved, found.interval, found.orders, found.censored)
                rows.append({"arm": arm, "against": against, "figure": name, **told})
                names.append(f"{arm} / {against}, {task_of(name)}")
    return saving_section("tokens-saved", rows, names)


def saved_against(records: Records, arm: str, against: str, name: str) -> TokensSaved | None:
    """The saving in figure ``name`` over the seeds that both were trained from; None where there
    are no curves, and of an arm against itself."""
    if arm == against or not {arm, against} <= set(records.metrics):
        return None
    return tokens_saved(_curves_of(records, arm, name), _curves_of(records, against, name))


def _yardsticks(records: Records) -> list[str]:
    baseline = [records.baseline] if records.baseline in records.metrics else []
    controls = [arm for arm, one in records.arms.items() if one.get("kind") in _CONTROLS]
    return [arm for arm in [*baseline, *controls] if arm is not None]


def _names(records: Records) -> list[str]:
    """The validated losses; ``training loss`` where nothing was validated."""
    names: dict[str, None] = {}
    for seeds in records.metrics.values():
        for rows in seeds.values():
            for row in rows:
                names |= dict.fromkeys(row.get("validation") or ())
    return loss_figures(names) or [_TRAINING]


def _curves_of(records: Records, arm: str, name: str) -> Mapping[int, Curve]:
    return {
        seed: [point for row in rows if (point := _point(row, name)) is not None]
        for seed, rows in records.metrics[arm].items()
    }


def _point(row: Mapping[str, Any], name: str) -> tuple[float, float] | None:
    value = row.get("loss") if name == _TRAINING else (row.get("validation") or {}).get(name)
    if not isinstance(value, int | float) or not isinstance(row.get("tokens"), int | float):
        return None
    return float(row["tokens"]), float(value)


def _over_seeds(records: Records, arm: str, name: str) -> list[dict[str, Any]]:
    """One row for each number of tokens at which every seed was scored."""
    by_tokens: dict[float, list[float]] = {}
    own = _curves_of(records, arm, name)
    for curve in own.values():
        for place, value in curve:
            by_tokens.setdefault(place, []).append(value)
    return [
        {
            "arm": arm,
            "figure": name,
            "tokens": int(place),
            "mean": math.fsum(values) / len(values),
            "lowest": min(values),
            "highest": max(values),
            "seeds": len(values),
        }
        for place, values in sorted(by_tokens.items())
        if len(values) == len([curve for curve in own.values() if curve])
    ]


def _thinned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most ``_MOST_POINTS`` of them at even distances, the last among them."""
    apart = -(-len(rows) // _MOST_POINTS)
    return rows[::-1][::apart][::-1] if rows else rows


def _picture(records: Records, name: str, rows: list[dict[str, Any]]) -> Picture:
    arms = list(records.metrics)
    series = []
    for arm in arms:
        own = [row for row in rows if row["arm"] == arm]
        if own:
            means, lows, highs = ([r[key] for r in own] for key in ("mean", "lowest", "highest"))
            several = own[0]["seeds"] > 1
            line = Line(arm, [row["tokens"] for row in own], means)
            series.append(Line(*(arm, line.x, means, lows, highs)) if several else line)
    ends = ", ".join(f"{line.name} {line.y[-1]:.3f}" for line in series)
    units = {"bits_per_byte": "bits per byte", "loss": "nats per token"}
    unit = units.get(name.rpartition("/")[2], "nats per token")
    return Picture(
        name,
        f"{name} against training tokens; at the end {ends}",
        lambda axis: lines(axis, series, arms, x="training tokens", y=unit),
    )
