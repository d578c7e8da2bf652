"""Two models' outcomes side by side: paired differences, intervals, corrected p-values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from wuneng.evaluate.outcomes import MetricOutcomes, TaskOutcomes
from wuneng.statistics import Estimate, PairedDifference, holm, paired_difference

__all__ = ["LevelComparison", "MetricComparison", "TaskComparison", "compare", "corrected"]


@dataclass(frozen=True)
class MetricComparison:
    """One metric of one task.

    Attributes:
        model, baseline: value and standard error; baseline None when there is none.
        difference: model minus baseline on the same items; None without a baseline, and for
            metrics that only the task's own aggregation gives.
        p_holm: p corrected for all comparisons of the report.
    """

    metric: str
    scale: str
    higher_is_better: bool
    model: Estimate
    baseline: Estimate | None = None
    difference: PairedDifference | None = None
    p_holm: float | None = None

    def the_other_way_round(self) -> MetricComparison:
        """Baseline and model exchanged; there must be a baseline."""
        assert self.baseline is not None
        difference = self.difference
        if difference is not None:
            difference = replace(
                difference,
                difference=0.0 - difference.difference,  # not minus zero
                low=0.0 - difference.high,
                high=0.0 - difference.low,
            )
        return replace(self, model=self.baseline, baseline=self.model, difference=difference)


@dataclass(frozen=True)
class TaskComparison:
    """One task: what was asked, and each metric.

    Attributes:
        n: items that both models answered.
        part_of: the pooled group that this task belongs to; its p-values are then not part of the
            correction, because the group's are.
        items: per item what was asked and what each model answered; empty unless logged.
        by_level: the same for the items of each level of difficulty or length, the easiest first;
            the figures are part of no correction.
    """

    outcomes: TaskOutcomes
    n: int
    metrics: list[MetricComparison]
    part_of: str | None
    items: list[dict[str, Any]]
    by_level: list[LevelComparison] = field(default_factory=list)


@dataclass(frozen=True)
class LevelComparison:
    """The items of one level of a task, and each metric on them."""

    value: int | float | str
    n: int
    chance: float | None
    metrics: list[MetricComparison]


def compare(
    model: Sequence[TaskOutcomes], baseline: Sequence[TaskOutcomes] | None
) -> list[TaskComparison]:
    """Pair the outcomes item by item and correct over all comparisons.

    Args:
        model: outcomes by task, pooled groups included.
        baseline: outcomes of the same tasks, or None.

    Raises:
        ValueError: a task that the baseline lacks, or no item in common.
    """
    others = {outcomes.task: outcomes for outcomes in baseline or ()}
    groups = {part: outcomes.task for outcomes in model for part in outcomes.parts}
    compared = []
    for outcomes in model:
        if baseline is not None and outcomes.task not in others:
            raise ValueError(f"the baseline has no outcomes for {outcomes.task}")
        compared.append(_task(outcomes, others.get(outcomes.task), groups.get(outcomes.task)))
    return corrected(compared)


def _task(
    model: TaskOutcomes, baseline: TaskOutcomes | None, part_of: str | None
) -> TaskComparison:
    if baseline is None:
        ours = theirs = np.arange(model.n)
        items = [_item(item, None) for item in model.items]
    else:
        ours, theirs = _paired_places(model.item_ids, baseline.item_ids)
        if len(ours) == 0:
            raise ValueError(f"{model.task}: the two models have no item in common")
        items = _paired_items(model, baseline, ours, theirs)
    by_level = _by_level(model, baseline, ours, theirs) if model.levels else []
    metrics = _metrics(model, baseline, ours, theirs)
    return TaskComparison(model, len(ours), metrics, part_of, items, by_level)


def _metrics(
    model: TaskOutcomes, baseline: TaskOutcomes | None, ours: Any, theirs: Any
) -> list[MetricComparison]:
    """Every metric that both have, at these places of the one's items and of the other's."""
    if baseline is None:
        return [
            MetricComparison(name, one.scale, one.higher_is_better, one.at(ours).estimate())
            for name, one in model.metrics.items()
        ]
    return [
        _metric(name, one.at(ours), baseline.metrics[name].at(theirs))
        for name, one in model.metrics.items()
        if name in baseline.metrics
    ]


def _by_level(
    model: TaskOutcomes, baseline: TaskOutcomes | None, ours: Any, theirs: Any
) -> list[LevelComparison]:
    """Each level's items on their own; numbers in their order, then words in theirs."""
    levels = [model.levels[place] for place in ours]
    compared = []
    for level in sorted(set(levels), key=lambda value: (isinstance(value, str), value)):
        at = np.array([place for place, own in enumerate(levels) if own == level], dtype=np.int64)
        metrics = _metrics(model, baseline, ours[at], theirs[at])
        own = [metric for metric in metrics if model.metrics[metric.metric].kind == "ratio"]
        compared.append(LevelComparison(level, len(at), model.level_chances.get(level), own))
    return compared


def _paired_items(
    model: TaskOutcomes, baseline: TaskOutcomes, ours: Any, theirs: Any
) -> list[dict[str, Any]]:
    items = []
    if model.items and baseline.items:
        pairs = zip(ours, theirs, strict=True)
        items = [_item(model.items[i], baseline.items[j]) for i, j in pairs]
    return items


def _paired_places(ours: list[str], theirs: list[str]) -> tuple[Any, Any]:
    place = {item: index for index, item in enumerate(theirs)}
    both = [(index, place[item]) for index, item in enumerate(ours) if item in place]
    pairs = np.array(both, dtype=np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _metric(name: str, model: MetricOutcomes, baseline: MetricOutcomes) -> MetricComparison:
    compared = MetricComparison(
        name, model.scale, model.higher_is_better, model.estimate(), baseline.estimate()
    )
    scored = (~np.isnan(model.values) & ~np.isnan(baseline.values)).nonzero()[0]
    if model.kind == "aggregate" or len(scored) == 0:
        return compared
    ours, theirs = model.at(scored), baseline.at(scored)
    difference = paired_difference(
        ours.values,
        theirs.values,
        model_weights=ours.weights,
        baseline_weights=theirs.weights,
        scale=ours.scale,
    )
    return replace(compared, difference=difference)


def corrected(tasks: list[TaskComparison]) -> list[TaskComparison]:
    """Holm's correction over every comparison that is not part of a pooled one, in place."""
    places = [
        (t, m)
        for t, task in enumerate(tasks)
        for m, metric in enumerate(task.metrics)
        if task.part_of is None and metric.difference is not None
    ]
    raw = [tasks[t].metrics[m].difference for t, m in places]
    adjusted = holm([difference.p for difference in raw if difference is not None])
    for (t, m), p in zip(places, adjusted, strict=True):
        tasks[t].metrics[m] = replace(tasks[t].metrics[m], p_holm=p)
    return tasks


def _item(model: dict[str, Any], baseline: dict[str, Any] | None) -> dict[str, Any]:
    asked = {key: value for key, value in model.items() if key != "outcome"}
    return {
        **asked,
        "model": model["outcome"],
        "baseline": None if baseline is None else baseline["outcome"],
    }
