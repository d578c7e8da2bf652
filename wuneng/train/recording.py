"""What is told of a step: the display hears of each, metrics.jsonl and the loggers of some."""

from __future__ import annotations

from typing import Any

from wuneng.records import append_jsonl
from wuneng.train.arm_job import ArmJob
from wuneng.train.display import Display, Progress
from wuneng.train.machine_figures import machine_figures
from wuneng.train.observing import Observer
from wuneng.train.pace import Pace
from wuneng.train.step import StepOutcome
from wuneng.train.trainer_state import TrainerState

__all__ = ["Recorder"]


class Recorder:
    """Tells of the steps of one arm.

    Args:
        observer: made before the model is compiled or wrapped.
    """

    def __init__(self, job: ArmJob, display: Display, observer: Observer, pace: Pace) -> None:
        self._job, self._display = job, display
        self._observer, self._pace = observer, pace

    def stepped(
        self,
        state: TrainerState,
        learning_rate: float,
        outcome: StepOutcome,
        validation: dict[str, float],
        *,
        stage: str,
        skipped_batches: int,
    ) -> None:
        """One step was taken; all processes call this together.

        Args:
            state: after it, its seconds known.
            validation: figures measured after it; empty where none were.
            stage: in which it was; empty for an arm without stages.
            skipped_batches: so far.
        """
        job, pace = self._job, self._pace
        due = state.step in (1, state.total_steps) or state.step % job.training.log_every == 0
        logged = due or bool(validation) or bool(outcome.reason)
        self._display.stepped(
            Progress(
                arm=job.arm,
                seed=job.seed,
                step=state.step,
                total_steps=state.total_steps,
                loss=outcome.loss,
                learning_rate=learning_rate,
                grad_norm=outcome.grad_norm,
                tokens_per_second=pace.tokens_per_second,
                seconds_left=pace.seconds_for(state.total_steps - state.step),
                logged=logged,
                validation=validation,
                skipped=outcome.reason,
                skipped_batches=skipped_batches,
            )
        )
        if not logged:
            return
        numerics, processes = job.numerics, job.numerics.processes
        flops = pace.tokens_per_second * job.flops_per_token / processes.size
        # By all processes together.
        observed = self._observer.figures(state.step, outcome)
        observed |= machine_figures(processes, numerics.device, numerics.autocast_dtype, flops)
        if not processes.is_first:
            return
        row = self._row(state, learning_rate, outcome, stage) | observed
        row |= _afterwards(outcome, validation)
        append_jsonl(job.directory.metrics, row)
        for logger in job.loggers:
            logger.log(row)
        pace.log()

    def _row(
        self, state: TrainerState, learning_rate: float, outcome: StepOutcome, stage: str
    ) -> dict[str, Any]:
        row: dict[str, Any] = {
            "arm": self._job.arm,
            "seed": self._job.seed,
            "step": state.step,
            "tokens": state.tokens,
            "loss": outcome.loss,
            "lr": learning_rate,
            "grad_norm": outcome.grad_norm,
            "tokens_per_second": round(self._pace.tokens_per_second, 1),
            "data_wait": round(self._pace.data_wait, 4),
            "seconds": round(state.seconds, 3),
        }
        if stage:
            row["stage"] = stage
        return row | outcome.parts


def _afterwards(outcome: StepOutcome, validation: dict[str, float]) -> dict[str, Any]:
    """Whether and why the batch was skipped, and what was measured after the step."""
    row: dict[str, Any] = {}
    if outcome.skipped:
        row["skipped"] = True
    if outcome.reason:
        row["skipped_because"] = outcome.reason
    if validation:
        row["validation"] = validation
    return row
