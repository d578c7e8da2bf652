"""What `wuneng eval` left: a forest of tasks, model minus baseline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from wuneng.report.plots import Interval, forest
from wuneng.report.records import Records
from wuneng.report.section import Picture, Section
from wuneng.report.setting import command_of

__all__ = ["evaluations"]


def evaluations(records: Records) -> Iterator[Section]:
    """A section for each eval.json."""
    for place, (file, record) in enumerate(records.evaluations.items()):
        rows = tuple(_rows(record))
        if not rows:
            continue
        state = record.get("settings", {}).get("state", "keep")
        title = "Tasks" if state == "keep" else f"Tasks, state {state}"
        model, baseline = (_label(record, key) for key in ("model", "baseline"))
        words = f"{model} on evaluation tasks ({file})"
        if baseline:
            words += f", against {baseline} on the same items, with 95 % intervals"
        notes = [str(note) for note in record.get("notes") or ()]
        yield Section(
            f"tasks-{place}" if place else "tasks",
            title,
            (f"{words}.", *notes),
            rows,
            tuple(_pictures(rows)),
            command=command_of(record),
        )


def _rows(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for task, one in record["tasks"].items():
        for metric, found in one["metrics"].items():
            low, high = found.get("ci95") or (None, None)
            yield {
                "task": task,
                "part_of": one.get("group"),
                "metric": metric,
                "n": one.get("n"),
                "model": found.get("model"),
                "baseline": found.get("baseline"),
                "difference": found.get("difference"),
                "low": low,
                "high": high,
                "p": found.get("p"),
                "p_holm": found.get("p_holm"),
                "test": found.get("test"),
                "chance": one.get("chance"),
                "higher_is_better": bool(found.get("higher_is_better")),
            }


def _label(record: Mapping[str, Any], key: str) -> str:
    model = (record.get("models") or {}).get(key)
    return str(model.get("label", "")) if isinstance(model, Mapping) else ""


def _pictures(rows: tuple[dict[str, Any], ...]) -> Iterator[Picture]:
    """Of every task the first metric, those that are better when higher apart from the others."""
    first: dict[str, dict[str, Any]] = {}
    for row in rows:
        first.setdefault(row["task"], row)
    for higher in (True, False):
        own = [
            Interval(f"{row['task']} {row['metric']}", row["difference"], row["low"], row["high"])
            for row in first.values()
            if row["higher_is_better"] is higher and row["difference"] is not None
        ]
        if own:
            better = f"{'right' if higher else 'left'}: the model is better"
            told = "; ".join(f"{one.name} {one.value:+z.4f}" for one in own)
            yield _forest(own, better, told)


def _forest(own: list[Interval], better: str, told: str) -> Picture:
    return Picture(
        "model − baseline",
        f"Differences on tasks, {better}: {told}",
        lambda axis: forest(axis, own, x=f"difference ({better})"),
        height=1.3 + 0.26 * len(own),
    )
