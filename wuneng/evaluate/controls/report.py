"""What the controls leave behind: controls.json, tables and sentences for people."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wuneng.controls.names import WRONG_STATES
from wuneng.evaluate.comparison import MetricComparison, TaskComparison
from wuneng.evaluate.controls.attribution import Attribution, attribute
from wuneng.evaluate.controls.battery import ControlsReport, UnderControl
from wuneng.evaluate.results import SCHEMA, number, settings_record
from wuneng.records import write_self_sealed
from wuneng.tables import Column, Table

__all__ = [
    "FILE",
    "attributions",
    "controls_record",
    "controls_tables",
    "head_maps",
    "remarks",
    "write_controls",
]

FILE = "controls.json"
PARTS = ("attention", "state", "middle")


def controls_record(report: ControlsReport) -> dict[str, Any]:
    """The report as plain values, schema 1; ``difference`` is the control minus the model as it is.

    Per task and metric: the model's own figure, each control's by its name, and ``heads``, for
    each part a map of layers by heads.
    """
    tasks: dict[str, Any] = {}
    for place, task in enumerate(report.found[0].tasks):
        metrics = {
            metric.metric: _metric(report, place, row) for row, metric in enumerate(task.metrics)
        }
        tasks[task.outcomes.task] = {
            "n": task.n,
            "chance": task.outcomes.chance,
            "split": task.outcomes.split,
            "group": task.part_of,
            "metrics": metrics,
        }
    return {
        "schema": SCHEMA,
        "model": report.model,
        "settings": settings_record(report.request),
        "tasks": tasks,
        "not_finite": report.not_finite,
        "attribution": [vars(one) for one in attributions(report)],
        "notes": report.notes,
    }


def write_controls(report: ControlsReport, file: Path, environment: dict[str, Any]) -> None:
    """Write controls.json atomically. DiskError when the disk refuses."""
    write_self_sealed(file, {**controls_record(report), "environment": environment})


def attributions(report: ControlsReport) -> list[Attribution]:
    """The verdict on the first metric of every task, where another text's state was tried."""
    wrong = report.of(*WRONG_STATES)
    found = []
    for place, task in enumerate(report.found[0].tasks):
        if task.part_of is None and task.metrics:
            beside = [(str(one.control), one.tasks[place].metrics[0]) for one in wrong]
            found.append(attribute(task.outcomes.task, beside))
    return [one for one in found if one is not None]


def controls_tables(report: ControlsReport) -> Iterator[Table]:
    """The controls by tasks, then the heads by tasks: first metrics, parts of groups left out."""
    shown = [
        (place, task)
        for place, task in enumerate(report.found[0].tasks)
        if task.part_of is None and task.metrics
    ]
    headings = [Column(_heading(task)) for _, task in shown]
    together = [one for one in report.found if one.control.head is None]
    if together:
        table = Table(
            f"{report.model['label']} ({report.model['parameters']:,} parameters) under control",
            [Column("control", name=True), *headings],
            caption="in brackets: 95 % interval of what the control changes on the same items",
            turns=True,
        )
        first = [task.metrics[0] for _, task in shown]
        table.add_row("as it is", *(number(one, one.model.value) for one in first))
        table.add_section()
        for one in together:
            cells = (_cell(one.tasks[place].metrics[0]) for place, _ in shown)
            table.add_row(str(one.control), *cells)
        yield table
    if heads := report.of("head"):
        table = Table(
            "each head alone silenced: what that changes",
            [Column("head", name=True), *headings],
            caption="layer.head, from 0; exploratory: not corrected for the number of heads",
        )
        for one in heads:
            assert one.control.head is not None
            part, layer, place = one.control.head
            cells = (_change(one.tasks[at].metrics[0]) for at, _ in shown)
            table.add_row(f"{part} {layer}.{place}", *cells)
        yield table


def remarks(report: ControlsReport) -> Iterator[str]:
    """Lines that belong under the tables."""
    for one in attributions(report):
        yield one.sentence
    for control, why in report.not_finite.items():
        yield f"{control}: no figures, the model does not stay finite so ({why})."
    if report.request.limit is not None:
        yield f"limited to {report.request.limit} items of each task: a rough look only."
    yield from report.notes


def head_maps(report: ControlsReport, place: int, row: int) -> dict[str, list[list[Any]]]:
    """For each part, what silencing a head changes ``[layer][head]``; None where there is none.

    Args:
        place, row: which task, and which of its metrics.
    """
    maps: dict[str, list[list[Any]]] = {}
    found = {one.control.head: one for one in report.of("head")}
    layers = 1 + max((head.layer for head in found if head), default=-1)
    for part in PARTS:
        own = [head for head in found if head and head.part == part]
        if not own:
            continue
        width = 1 + max(head.number for head in own)
        maps[part] = [[None] * width for _ in range(layers)]
        for head in own:
            maps[part][head.layer][head.number] = _changed(found[head].tasks[place].metrics[row])
    return maps


def _metric(report: ControlsReport, place: int, row: int) -> dict[str, Any]:
    own = report.found[0].tasks[place].metrics[row]
    record: dict[str, Any] = {
        "value": own.model.value,
        "stderr": own.model.stderr,
        "higher_is_better": own.higher_is_better,
        "controls": {
            str(one.control): _controlled(one, place, row)
            for one in report.found
            if one.control.head is None
        },
    }
    if heads := head_maps(report, place, row):
        record["heads"] = heads
    return record


def _controlled(one: UnderControl, place: int, row: int) -> dict[str, Any]:
    metric = one.tasks[place].metrics[row]
    assert metric.baseline is not None
    return {
        "value": metric.baseline.value,
        "stderr": metric.baseline.stderr,
        **_changed(metric),
        "p": metric.difference.p if metric.difference else None,
        "p_holm": metric.p_holm,
        "test": metric.difference.test if metric.difference else None,
    }


def _changed(metric: MetricComparison) -> dict[str, Any]:
    """The control minus the model as it is, which the comparison has the other way round."""
    difference = metric.the_other_way_round().difference
    if difference is None:
        return {"difference": None, "difference_stderr": None, "ci95": None}
    return {
        "difference": difference.difference,
        "difference_stderr": difference.stderr,
        "ci95": None if difference.interval is None else list(difference.interval),
    }


def _heading(task: TaskComparison) -> str:
    metric = task.metrics[0]
    return f"{task.outcomes.task} {metric.metric} {'↑' if metric.higher_is_better else '↓'}"


def _cell(metric: MetricComparison) -> str:
    assert metric.baseline is not None
    value, interval = number(metric, metric.baseline.value), _changed(metric)["ci95"]
    if interval is None:
        return value
    low, high = (number(metric, end, signed=True) for end in interval)
    return f"{value} ({low} to {high})"


def _change(metric: MetricComparison) -> str:
    difference = _changed(metric)["difference"]
    return "" if difference is None else number(metric, difference, signed=True)
