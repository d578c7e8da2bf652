"""One evaluation from beginning to end: tasks first, then one model after the other."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wuneng.controls.names import parse_state_control
from wuneng.evaluate.comparison import TaskComparison, compare
from wuneng.evaluate.job import EvaluationRequest, Job, labelled, prepared
from wuneng.evaluate.outcomes import TaskOutcomes

if TYPE_CHECKING:
    import torch

__all__ = ["EvaluationReport", "EvaluationRequest", "run_evaluation"]


@dataclass(frozen=True)
class EvaluationReport:
    """The comparison, with what is needed to read it.

    Attributes:
        models: "model" and "baseline" (None when there is none), described.
        sources: where a task's items were read from, for local files.
        notes: remarks that belong beside the figures.
    """

    request: EvaluationRequest
    models: dict[str, dict[str, Any] | None]
    tasks: list[TaskComparison]
    sources: dict[str, str]
    notes: list[str]


def run_evaluation(
    request: EvaluationRequest,
    device: torch.device,
    *,
    notify: Callable[[str], None] = lambda message: None,
    progress: bool = False,
) -> EvaluationReport:
    """Evaluate one or two models on the same items.

    Args:
        device: where the models run.
        notify: called with a line of text at each stage.
        progress: show the harness' bars on stderr.

    Raises:
        DamagedError: a file of a model or its run is not what was written.
        TaskError, DataError: before any model is loaded, when a task or its data cannot be had.
        ModelError: a model that cannot be loaded, or lacks what was asked of it.
    """
    with prepared(request, device, notify=notify, progress=progress) as job:
        model = _outcomes(job, request.model, request.state)
        baseline = None if request.baseline is None else _outcomes(job, request.baseline, "keep")
    return EvaluationReport(
        request=request,
        models={"model": model[0], "baseline": baseline[0] if baseline else None},
        tasks=compare(model[1], baseline[1] if baseline else None),
        sources={name: task.source for name, task in job.tasks.local.items()},
        notes=job.notes,
    )


def _outcomes(job: Job, path: Path, state: str) -> tuple[dict[str, Any], list[TaskOutcomes]]:
    """Load one model, evaluate it, and let go of it."""
    control = parse_state_control(state)
    loaded = job.load(path)
    described = {**loaded.describe(), "state": state}
    job.notify(
        f"evaluating {labelled(loaded, control)}: {described['parameters']:,} parameters, "
        f"{job.device}"
    )
    found = job.score(loaded, control)
    del loaded
    gc.collect()
    return described, found
