"""Evaluation tasks at each level of difficulty or length, where their records have any."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from wuneng.report.plots import Line, lines
from wuneng.report.records import Records
from wuneng.report.section import Picture, Section, label
from wuneng.report.setting import command_of

__all__ = ["levels"]

_CHANCE = "chance"


def levels(records: Records) -> Section | None:
    """Model and baseline on the items of each level, with a panel a task."""
    rows: list[dict[str, Any]] = []
    pictures: list[Picture] = []
    commands: dict[str, None] = {}
    for file, record in records.evaluations.items():
        for task, one in record["tasks"].items():
            if not one.get("by_level"):
                continue
            own = list(_rows(file, task, one["by_level"]))
            commands[command_of(record)] = None
            rows += own
            metric = own[0]["metric"]
            pictures += _panel(task, metric, [row for row in own if row["metric"] == metric])
    if not rows:
        return None
    text = (
        "Each task's items apart by how difficult or how long they are. Exploratory: these "
        "figures are part of no correction.",
    )
    made_by = "; ".join(filter(None, commands))
    title = "Tasks by difficulty and length"
    return Section("levels", title, text, tuple(rows), tuple(pictures), command=made_by)


def _rows(file: str, task: str, levels: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for level in levels["levels"]:
        for metric, found in level["metrics"].items():
            low, high = found.get("ci95") or (None, None)
            yield {
                "file": file,
                "task": task,
                "metric": metric,
                "level_of": levels["name"],
                "level": level["value"],
                "n": level["n"],
                "chance": level.get("chance"),
                "model": found.get("model"),
                "baseline": found.get("baseline"),
                "difference": found.get("difference"),
                "low": low,
                "high": high,
            }


def _panel(task: str, metric: str, rows: list[dict[str, Any]]) -> Iterator[Picture]:
    """Nothing for levels that are words, or for one level alone."""
    if len(rows) < 2 or not all(isinstance(row["level"], int | float) for row in rows):
        return
    series = [
        Line(name, [row["level"] for row in known], [row[name] for row in known])
        for name in ("model", "baseline", _CHANCE)
        if (known := [row for row in rows if row[name] is not None])
    ]
    told = "; ".join(
        f"{line.name} {line.y[0]:.2f} at {line.x[0]:g} and {line.y[-1]:.2f} at {line.x[-1]:g}"
        for line in series
    )
    unit = str(rows[0]["level_of"])
    far = rows[-1]["level"] > 16 * max(1, rows[0]["level"])

    def draw(axis: Any) -> None:
        names = [line.name for line in series]
        lines(axis, series, names, x=label(unit), y=label(metric), log_x=far)
        if not far:
            axis.set_xticks([row["level"] for row in rows])

    yield Picture(task, f"{metric} of {task} against {unit}: {told}", draw)
