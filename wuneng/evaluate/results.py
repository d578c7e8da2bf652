"""What an evaluation leaves behind: eval.json, and a table for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wuneng.controls.names import WRONG_STATES
from wuneng.evaluate.comparison import MetricComparison, TaskComparison
from wuneng.evaluate.controls.attribution import Attribution, attribute
from wuneng.records import write_self_sealed
from wuneng.statistics import Estimate
from wuneng.tables import Column, Table

if TYPE_CHECKING:
    from wuneng.evaluate.job import EvaluationRequest
    from wuneng.evaluate.session import EvaluationReport

__all__ = [
    "number",
    "remarks",
    "report_record",
    "report_table",
    "result_file",
    "settings_record",
    "write_report",
]

SCHEMA = 1


def result_file(directory: Path, state: str) -> Path:
    """``eval.json``; a state control has a file of its own and overwrites no other result."""
    part = state.replace(":", "-")
    return directory / ("eval.json" if state == "keep" else f"eval-state-{part}.json")


def report_record(report: EvaluationReport, *, items: bool) -> dict[str, Any]:
    """The report as plain values, schema 1.

    Args:
        items: include what was logged item by item.
    """
    request = report.request
    return {
        "schema": SCHEMA,
        "models": report.models,
        "settings": {**settings_record(request), "state": request.state},
        "tasks": {task.outcomes.task: _task_record(task, report, items) for task in report.tasks},
        "notes": report.notes,
    }


def settings_record(request: EvaluationRequest) -> dict[str, Any]:
    """What was asked for, as result files say it."""
    return {
        "tasks": list(request.tasks),
        "data_dir": None if request.data_dir is None else str(request.data_dir),
        "include_path": None if request.include_path is None else str(request.include_path),
        "fields": None if request.fields is None else request.fields.model_dump(),
        "lengths": None if request.lengths is None else list(request.lengths),
        "limit": request.limit,
        "num_fewshot": request.num_fewshot,
        "batch_size": request.batch_size,
        "dtype": request.dtype,
    }


def write_report(report: EvaluationReport, file: Path, environment: dict[str, Any]) -> None:
    """Write eval.json and its checksum, with logged items. DiskError when the disk refuses."""
    write_self_sealed(file, {**report_record(report, items=True), "environment": environment})


def _task_record(task: TaskComparison, report: EvaluationReport, items: bool) -> dict[str, Any]:
    outcomes = task.outcomes
    record: dict[str, Any] = {
        "n": task.n,
        "chance": outcomes.chance,
        "majority": outcomes.majority,
        "split": outcomes.split,
        "num_fewshot": outcomes.num_fewshot,
        "source": report.sources.get(outcomes.task),
        "group": task.part_of,
        "metrics": {metric.metric: _metric_record(metric) for metric in task.metrics},
    }
    if task.by_level:
        record["by_level"] = {
            "name": outcomes.level_name,
            "levels": [
                {
                    "value": level.value,
                    "n": level.n,
                    "chance": level.chance,
                    "metrics": {metric.metric: _metric_record(metric) for metric in level.metrics},
                }
                for level in task.by_level
            ],
        }
    if outcomes.parts:
        record["parts"] = list(outcomes.parts)
    if items and task.items:
        record["items"] = _plain(task.items)
    return record


def _metric_record(metric: MetricComparison) -> dict[str, Any]:
    baseline, difference = metric.baseline, metric.difference
    return {
        "model": metric.model.value,
        "model_stderr": metric.model.stderr,
        "baseline": baseline.value if baseline else None,
        "baseline_stderr": baseline.stderr if baseline else None,
        "difference": difference.difference if difference else None,
        "difference_stderr": difference.stderr if difference else None,
        "ci95": list(difference.interval) if difference and difference.interval else None,
        "p": difference.p if difference else None,
        "p_holm": metric.p_holm,
        "test": difference.test if difference else None,
        "higher_is_better": metric.higher_is_better,
    }


def report_table(report: EvaluationReport) -> Table:
    """Task, n, metric, both models with standard errors, paired difference, p, chance.

    Every figure is in the table, however narrow: where it is cut, the parts stand below each other.
    """
    model, baseline = report.models["model"], report.models["baseline"]
    assert model is not None
    tasks = [task for task in report.tasks if task.part_of is None]
    guessed = any(_chance(task, metric) for task in tasks for metric in task.metrics)
    columns = [Column("task", name=True), Column("metric", name=True), Column("n")]
    columns += [Column(f"{name} ± se") for name in _headings(model, baseline)]
    if baseline is not None:
        columns += [Column("difference [95 % CI]"), Column("p (Holm)")]
    if guessed:
        columns.append(Column("chance"))
    table = Table(_title(model, baseline), columns)
    for task in tasks:
        for row, metric in enumerate(task.metrics):
            first = row == 0
            cells = [task.outcomes.task if first else "", _direction(metric)]
            cells += [f"{task.n:,}" if first else "", _estimate(metric, metric.model)]
            if baseline is not None:
                cells += _compared_cells(metric)
            table.add_row(*cells, *([_chance(task, metric)] if guessed else []))
    return table


def remarks(report: EvaluationReport) -> Iterator[str]:
    """Lines that belong under the table: how to read it, and what to mind."""
    if report.models["baseline"] is not None:
        count = sum(metric.p_holm is not None for task in report.tasks for metric in task.metrics)
        yield (
            "difference: model minus baseline on the same items; p: exact McNemar for right/wrong "
            "outcomes, else paired bootstrap; in brackets (Holm): corrected for the "
            f"{count} comparison{'s' if count != 1 else ''} of this table."
        )
        if any(task.outcomes.task == "validation" for task in report.tasks):
            yield (
                "validation: rows of one document are not independent, so its interval is too "
                "narrow where documents are few."
            )
    yield from (_levels_line(task) for task in report.tasks if task.by_level)
    yield from (one.sentence for one in _attributions(report))
    for task in report.tasks:
        majority = task.outcomes.majority
        if task.part_of is None and majority is not None:
            yield f"{task.outcomes.task}: always giving the most frequent answer: {majority:.3f}."
    if report.request.limit is not None:
        yield f"limited to {report.request.limit} items of each task: a rough look only."
    yield from report.notes


def _levels_line(task: TaskComparison) -> str:
    """The first metric at each level, as ``4: 0.98 (0.51), ...`` with the baseline's behind it."""
    name = task.by_level[0].metrics[0].metric
    told = []
    for level in task.by_level:
        metric = level.metrics[0]
        beside = f" ({number(metric, metric.baseline.value)})" if metric.baseline else ""
        told.append(f"{level.value}: {number(metric, metric.model.value)}{beside}")
    beside = " (baseline's behind)" if task.by_level[0].metrics[0].baseline else ""
    return f"{task.outcomes.task}: {name} by {task.outcomes.level_name}{beside}: {', '.join(told)}."


def _attributions(report: EvaluationReport) -> Iterator[Attribution]:
    """Whose the gain is, where a model with another text's state stands beside itself."""
    request = report.request
    if request.state not in WRONG_STATES or request.baseline != request.model:
        return
    for task in report.tasks:
        if task.part_of is None and task.metrics:
            right = task.metrics[0].the_other_way_round()
            if found := attribute(task.outcomes.task, [(request.state, right)]):
                yield found


def _title(model: dict[str, Any], baseline: dict[str, Any] | None) -> str:
    against = "" if baseline is None else f" against {_named(baseline)}"
    return f"{_named(model)}{against}"


def _headings(model: dict[str, Any], baseline: dict[str, Any] | None) -> list[str]:
    """Arms of one run by their own names: the title has the run's."""
    if baseline is None:
        return [_shown(model)]
    names = [_shown(one) for one in (model, baseline)]
    (run, _, arm), (other_run, _, other) = (name.rpartition("/") for name in names)
    return [arm, other] if run == other_run and arm != other else names


def _named(model: dict[str, Any]) -> str:
    return f"{_shown(model)} ({model['parameters']:,} parameters)"


def _shown(model: dict[str, Any]) -> str:
    state = model["state"]
    return str(model["label"]) + ("" if state == "keep" else f", state {state}")


def _direction(metric: MetricComparison) -> str:
    return f"{metric.metric} {'↑' if metric.higher_is_better else '↓'}"


def _compared_cells(metric: MetricComparison) -> list[str]:
    assert metric.baseline is not None
    baseline = _estimate(metric, metric.baseline)
    difference = metric.difference
    if difference is None:
        return [baseline, "", ""]
    shown = number(metric, difference.difference, signed=True)
    if difference.interval is not None:
        low, high = (number(metric, end, signed=True) for end in difference.interval)
        shown += f" [{low}, {high}]"
    p = _p_value(difference.p)
    return [baseline, shown, p if metric.p_holm is None else f"{p} ({_p_value(metric.p_holm)})"]


def _estimate(metric: MetricComparison, estimate: Estimate) -> str:
    value = number(metric, estimate.value)
    if estimate.stderr is None:
        return value
    return f"{value} ± {number(metric, estimate.stderr)}"


def number(metric: MetricComparison, value: float, *, signed: bool = False) -> str:
    """A value of a metric, or with ``signed`` a difference, as tables print it."""
    sign = "+" if signed else ""
    if metric.scale == "perplexity":
        return f"{value:{sign}.4g}" if abs(value) < 1000 else f"{value:{sign},.0f}"
    return f"{value:{sign}.4f}" if metric.scale == "bits" else f"{value:{sign}.3f}"


def _p_value(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _chance(task: TaskComparison, metric: MetricComparison) -> str:
    chance = task.outcomes.chance
    guessed = metric.metric.startswith("acc")
    return f"{chance:.3f}" if chance is not None and guessed else ""


def _plain(value: Any) -> Any:
    """Numpy scalars as Python's own numbers, which JSON can spell."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value.item() if hasattr(value, "item") else value
