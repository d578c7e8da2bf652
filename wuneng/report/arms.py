"""The arms side by side: what each costs, what each scores, and what they differ in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from wuneng.report.figures import length_of, task_of
from wuneng.report.plots import Line, lines
from wuneng.report.records import Records
from wuneng.report.section import Picture, Section

__all__ = ["KEPT", "costs", "differing_settings", "lengths", "quality"]

_COSTS = (
    *("parameters", "trainable_parameters", "added_percent", "training_flops", "tokens"),
    *("cache_bytes", "state_bytes", "peak_bytes", "seconds", "tokens_per_second", "learning_rate"),
)
KEPT = (
    "Cache (keys and values) and state bytes are of one sequence of the length that was trained "
    "at, in float32."
)


def costs(records: Records) -> Section | None:
    """Parameters, FLOPs, bytes and time of every arm, as far as the record has them."""
    arms = records.arms
    known = [key for key in _COSTS if any(arm.get(key) is not None for arm in arms.values())]
    rows = tuple(
        {"arm": name, "kind": arm.get("kind")} | {key: arm.get(key) for key in known}
        for name, arm in arms.items()
    )
    text = ["What each arm took; with several seeds the mean of one seed."]
    if "cache_bytes" in known:
        text.append(KEPT)
    return Section("costs", "What each arm costs", tuple(text), rows) if rows else None


def quality(records: Records) -> Section | None:
    """Every figure of every arm, with its spread."""
    rows = []
    for name, arm in records.arms.items():
        seeds = len(arm.get("seeds") or [0])
        for figure, value in arm.get("quality", {}).items():
            row = {"arm": name, "figure": figure, "value": value}
            row["standard_error"] = arm.get("standard_error", {}).get(figure)
            row["spread_over_seeds"] = arm.get("quality_std", {}).get(figure)
            rows.append(row | {"seeds": seeds})
    several = any(row["seeds"] > 1 for row in rows)
    over = "seeds" if several else "the rows that were scored, one seed"
    text = (f"Standard errors are over {over}.",)
    return Section("quality", "What each arm scores", text, tuple(rows)) if rows else None


def lengths(records: Records) -> Section | None:
    """Accuracy against length, a panel for each task."""
    rows: list[dict[str, Any]] = []
    for name, arm in records.arms.items():
        for figure, value in arm.get("quality", {}).items():
            length = length_of(figure)
            if length is not None and value is not None:
                error = arm.get("standard_error", {}).get(figure)
                found = {"task": task_of(figure), "arm": name, "length": length}
                rows.append(found | {"accuracy": value, "standard_error": error})
    rows.sort(key=lambda row: (row["task"], list(records.arms).index(row["arm"]), row["length"]))
    if len({row["length"] for row in rows}) < 2:
        return None
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    pictures = tuple(
        _lengths_of(task, [r for r in rows if r["task"] == task], list(records.arms))
        for task in tasks
    )
    text = ("Accuracy at the training length and beyond; bands are one standard error.",)
    return Section("lengths", "Accuracy against length", text, tuple(rows), pictures)


def _lengths_of(task: str, rows: list[dict[str, Any]], arms: list[str]) -> Picture:
    series = []
    for arm in arms:
        own = [row for row in rows if row["arm"] == arm]
        if not own:
            continue
        values = [row["accuracy"] for row in own]
        errors = [row["standard_error"] or 0.0 for row in own]
        bounds = [[v + sign * e for v, e in zip(values, errors, strict=True)] for sign in (-1, 1)]
        series.append(Line(arm, [row["length"] for row in own], values, *bounds))
    told = "; ".join(
        f"{line.name} {line.y[0]:.2f} at {line.x[0]:.0f} and {line.y[-1]:.2f} at {line.x[-1]:.0f}"
        for line in series
    )
    return Picture(
        task,
        f"Accuracy of {task} against length in tokens: {told}",
        lambda axis: lines(axis, series, arms, x="tokens", y="accuracy", log_x=True),
    )


def differing_settings(records: Records) -> Section | None:
    """The settings of the recipe in which the arms differ."""
    arms = (records.recipe or {}).get("arms")
    if records.study is not None or records.sweep is not None:
        return None  # its recipe is as it was written; the runs below have each arm's own settings
    if not isinstance(arms, Mapping) or len(arms) < 2:
        return None
    flat = {str(arm): dict(_flat(given)) for arm, given in arms.items()}
    whole, nothing = (records.recipe or {}).get("init_from"), (None, "null")
    shared = dict(
        _flat(
            {
                "model": (records.recipe or {}).get("model"),
                "training": (records.recipe or {}).get("training"),
            }
        )
    )
    paths = dict.fromkeys(path for own in flat.values() for path in own)
    loaded = {arm for arm, given in flat.items() if given.get("init_from", whole) not in nothing}
    rows = []
    for path in paths:
        values = {arm: own.get(path, shared.get(path)) for arm, own in flat.items()}
        # What a recipe leaves to the models it starts from is no difference that it makes.
        left = path.startswith("model.") and all(values[arm] is None for arm in loaded)
        told = {arm: value for arm, value in values.items() if not (left and arm in loaded)}
        if len(set(told.values())) > 1:
            rows.append({"setting": path, **values})
    text = ("What the recipe gives one arm and not the others.",)
    return Section("settings", "What differs between the arms", text, tuple(rows)) if rows else None


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    elif path:
        yield path, value if isinstance(value, str) else json.dumps(value, default=str)
