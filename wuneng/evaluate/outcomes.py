"""What one model did on one task, item by item: the common currency of this package.

The harness, the validation-split scorer and any later scorer all return `TaskOutcomes`; the
comparison and the result files know nothing else about where the figures come from.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wuneng.statistics import Estimate, Scale, estimate

__all__ = ["MetricOutcomes", "TaskOutcomes", "pooled"]


@dataclass(frozen=True)
class MetricOutcomes:
    """One metric's value on every item.

    Attributes:
        kind: "ratio" (a ratio of sums over items) or "aggregate" (only the task's own aggregation
            makes sense, such as F1: a value without an interval).
        values: `[n]` float64: scores (0 or 1 for accuracies), or log-likelihoods in nats; NaN for
            an item that the task does not score by this metric.
        weights: `[n]` float64 denominators (tokens, words, bytes), or None for ones.
        scale: how the ratio of sums becomes the figure that is printed.
        higher_is_better: False for perplexities and bits.
        aggregate: the value for kind "aggregate".
    """

    kind: Literal["ratio", "aggregate"]
    values: NDArray[np.float64]
    weights: NDArray[np.float64] | None = None
    scale: Scale = "mean"
    higher_is_better: bool = True
    aggregate: float | None = None

    def at(self, places: NDArray[np.int64]) -> MetricOutcomes:
        """The outcomes of the items at these places."""
        weights = None if self.weights is None else self.weights[places]
        return replace(self, values=self.values[places], weights=weights)

    def estimate(self) -> Estimate:
        """The metric's value and standard error over all items."""
        if self.kind == "aggregate":
            assert self.aggregate is not None
            return Estimate(self.aggregate, None)
        scored = ~np.isnan(self.values)
        weights = None if self.weights is None else self.weights[scored]
        return estimate(self.values[scored], weights, self.scale)


@dataclass(frozen=True)
class TaskOutcomes:
    """One model's results on one task.

    Attributes:
        task: the name the results are reported under.
        item_ids: `[n]`, identify the items; two models' outcomes are paired by them.
        metrics: by name ("acc", "acc_norm", "perplexity", "exact_match,strict-match", ...).
        chance: expected accuracy of guessing, from each item's number of choices; None where
            nothing is chosen.
        majority: accuracy of always giving the most frequent answer, where every item offers
            the same answers (BoolQ's yes and no); else None.
        split: the evaluated split's name.
        num_fewshot: examples before each question.
        parts: the tasks a pooled group consists of; empty for a single task.
        items: for `--log-samples`: per item its target, and what this model gave.
        levels: `[n]` how difficult or long each item is, where the task says so; else empty.
        level_name: what that counts, as "hops" or "tokens".
        level_chances: what guessing gets right at each level.
    """

    task: str
    item_ids: list[str]
    metrics: dict[str, MetricOutcomes]
    chance: float | None = None
    majority: float | None = None
    split: str = ""
    num_fewshot: int = 0
    parts: tuple[str, ...] = ()
    items: list[dict[str, Any]] = field(default_factory=list)
    levels: tuple[int | float | str, ...] = ()
    level_name: str = ""
    level_chances: dict[int | float | str, float | None] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Number of items."""
        return len(self.item_ids)


def pooled(name: str, parts: list[TaskOutcomes]) -> TaskOutcomes:
    """All items of several tasks as one task (a size-weighted group such as MMLU).

    Metrics that not every part has, or that cannot be pooled item by item, are left out.
    """
    shared = [
        metric
        for metric, outcomes in parts[0].metrics.items()
        if all(metric in part.metrics for part in parts) and outcomes.kind != "aggregate"
    ]
    total = sum(part.n for part in parts)
    chances = [part.chance for part in parts]
    known = [chance for chance in chances if chance is not None]
    return TaskOutcomes(
        task=name,
        item_ids=[f"{part.task}/{item}" for part in parts for item in part.item_ids],
        metrics={metric: _joined([part.metrics[metric] for part in parts]) for metric in shared},
        chance=sum(c * p.n for c, p in zip(known, parts, strict=True)) / total
        if len(known) == len(parts)
        else None,
        split=parts[0].split,
        num_fewshot=parts[0].num_fewshot,
        parts=tuple(part.task for part in parts),
        items=[{**item, "task": part.task} for part in parts for item in part.items],
    )


def _joined(outcomes: list[MetricOutcomes]) -> MetricOutcomes:
    first = outcomes[0]
    weights = None
    if any(one.weights is not None for one in outcomes):
        weights = np.concatenate(
            [np.ones_like(o.values) if o.weights is None else o.weights for o in outcomes]
        )
    return MetricOutcomes(
        kind=first.kind,
        values=np.concatenate([one.values for one in outcomes]),
        weights=weights,
        scale=first.scale,
        higher_is_better=first.higher_is_better,
    )
