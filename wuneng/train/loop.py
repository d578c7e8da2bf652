"""Training one arm, from its first step or its last checkpoint to the end.

``ArmTraining.run`` is the story; what it tells is done elsewhere: one step in ``step``, figures in
``quality``, saving in ``checkpoint``, telling of it in ``recording``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from torch.profiler import record_function

from wuneng.data.batch import same_data
from wuneng.data.prefetch import Prefetched
from wuneng.errors import CheckpointError
from wuneng.model.time_by_part import DATA, PREFIX
from wuneng.recipe import OptimizerSettings
from wuneng.records import read_jsonl, truncate_jsonl_after
from wuneng.records.durable import flush
from wuneng.train import checkpoint
from wuneng.train.arm_job import ArmJob
from wuneng.train.display import Display
from wuneng.train.machine_figures import reset_peak
from wuneng.train.observing import Observer
from wuneng.train.pace import Pace
from wuneng.train.phase_walk import PhaseWalk
from wuneng.train.quality import measure
from wuneng.train.recording import Recorder
from wuneng.train.saving import Saver
from wuneng.train.signals import Interrupted, StopSignals
from wuneng.train.skipping import Skipping
from wuneng.train.step import StepOutcome, compilation_error, prepare_model, take_step
from wuneng.train.step_profile import StepProfile
from wuneng.train.trainer_state import TrainerState, capture_rng, draw_apart, restore_rng

__all__ = ["ArmTraining"]


@dataclass
class ArmTraining:
    """One arm's training."""

    job: ArmJob
    display: Display
    stop: StopSignals
    state: TrainerState = field(init=False)

    def __post_init__(self) -> None:
        job = self.job
        self._walk = PhaseWalk(job.model, job.training, job.phases, job.teacher, job.teacher_cache)
        rows = 2 if job.in_company else 1
        observer = Observer(job.model, job.training, job.numerics, job.validation, rows)
        self.called = prepare_model(job.model, job.training, job.numerics)
        self.total_steps = job.training.total_steps
        place = job.directory.checkpoints
        self._saver = Saver(
            *(place, job.model, self._walk.optimizer, job.training),
            warn=self.display.warn,
            processes=job.numerics.processes,
            shards=job.shards,
        )
        self._profiling = StepProfile(
            job.profile if job.numerics.processes.is_first else None,
            job.directory.path / "profile",
            None if job.training.compile or job.training.cuda_graph else job.model,
            job.numerics.device,
            self.display.warn,
        )
        self._pace = Pace()
        self._recorder = Recorder(job, self.display, observer, self._pace)
        self._saved_step = -1
        self._first_of_session = True

    def run(self) -> TrainerState:
        """Train to the last step; the state that comes back is saved in the last checkpoint.

        Raises:
            Interrupted: a signal came; the step was finished and a checkpoint written.
            NonFiniteError, DiskError, CheckpointError: see ``step`` and ``checkpoint``.
        """
        self._start_or_resume()
        left = self.total_steps - self.state.step
        together = self.job.numerics.processes.size > 1
        batches = Prefetched(self.job.train, left, together=together)
        with batches as self._batches, self._saver, self._profiling:
            while self.state.step < self.total_steps:
                self.leave_if_asked()
                if self._walk.is_due(self.state.step):
                    self._enter(self.state.step)
                with self._profiling.of(self.state.step + 1):
                    learning_rate, outcome = self._step()
                figures = self._validate_if_due()
                self.state.seconds = time.perf_counter() - self._clock
                self._recorder.stepped(
                    *(self.state, learning_rate, outcome, figures),
                    stage=self._walk.phase.name,
                    skipped_batches=self._skipping.batches,
                )
                if self._saver.due(self.state):
                    self._save()
            self._save()
            self._saver.finish()
            if self.job.numerics.captured is not None:
                self.job.numerics.captured.forget()  # validation at the end may need the memory
            self.leave_if_asked()
        waited = f"{self.state.data_wait:.1%} of its steps' time was waited for data"
        self.display.note(f"{self.job.arm} (seed {self.job.seed}): {waited}")
        return self.state

    def _start_or_resume(self) -> None:
        job = self.job
        processes = job.numerics.processes
        found = processes.first(
            lambda: checkpoint.latest_usable(job.directory.checkpoints, self.display.warn)
        )
        self._enter(0 if found is None else found.state.step)
        if found is None:
            self.state = TrainerState(job.arm, job.seed, total_steps=self.total_steps)
            settings = set(OptimizerSettings.model_fields)
            self.state.schedule = job.training.model_dump(include=settings)
            self.state.data_description = job.data_description
        else:
            self._resume(found)
        draw_apart(processes.rank)
        # Lines after the checkpoint are of steps that are taken again: they would be doubled.
        damaged = processes.first(
            lambda: truncate_jsonl_after(job.directory.metrics, self.state.step)
        )
        if damaged:
            lines = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
            self.display.warn(f"{job.directory.metrics}: damaged and left out: line {lines}")
        self._skipping = Skipping(job.training, self.state.skipping)
        rows = read_jsonl(job.directory.metrics) if job.loggers else []
        for logger in job.loggers:
            logger.begin(rows)
        reset_peak(job.numerics.device)
        self._clock = time.perf_counter() - self.state.seconds

    def _resume(self, found: checkpoint.Checkpoint) -> None:
        job, state = self.job, found.state
        if (state.arm, state.seed) != (job.arm, job.seed):
            raise CheckpointError(
                f"{found.path} is of arm {state.arm!r}, seed {state.seed}; "
                f"expected arm {job.arm!r}, seed {job.seed}"
            )
        if not same_data(state.data_description, job.data_description):
            raise CheckpointError(
                f"{found.path}: the training data has changed since. It was: "
                f"{state.data_description!r}; it is: {job.data_description!r}. "
                "Restore the data, or start anew with --resume never"
            )
        moments = self._walk.has_begun(state.step)
        checkpoint.restore(found, job.model, self._walk.optimizer, moments=moments)
        job.train.load_state_dict(state.data)
        if job.numerics.scaler is not None and state.scaler:
            job.numerics.scaler.load_state_dict(state.scaler)
        restore_rng(state.rng)
        self.state, self._saved_step = state, state.step
        state.total_steps = self.total_steps  # more than then, where the run was extended
        self.display.note(f"{job.arm}: continuing after step {state.step} ({found.path})")

    def _enter(self, step: int) -> None:
        entered = self._walk.enter(step)
        self._saver.follow(self._walk.optimizer)
        if entered is not None:
            self.display.note(f"{self.job.arm} (seed {self.job.seed}): {entered}")

    def _step(self) -> tuple[float, StepOutcome]:
        job, state = self.job, self.state
        began, waited = time.perf_counter(), self._batches.waited
        learning_rate = self._walk.learning_rate(state.step)
        with record_function(PREFIX + DATA):  # heard by a profile alone
            batch = self._batches.next_batch()
        try:
            outcome = take_step(
                self.called,
                self._walk.optimizer,
                batch,
                job.training,
                job.numerics,
                step=state.step + 1,
                arm=job.arm,
                teacher=self._walk.teacher,
                skipping=self._skipping,
            )
        except Exception as error:
            failure = compilation_error(error, job.training)
            if failure is None:
                raise
            raise failure from error
        elapsed, waited = time.perf_counter() - began, self._batches.waited - waited
        # Compiling belongs to wall time, but says nothing of how fast the arm is.
        compiles = job.training.compile or job.training.has_low_bit_moments
        typical = not (compiles and self._first_of_session)
        self._first_of_session = False
        state.step += 1
        state.tokens += outcome.tokens
        self._walk.taken(state.step)
        if typical:
            state.timed_tokens += outcome.tokens
            state.timed_seconds += elapsed
            state.waited_seconds += waited
        self._pace.add(outcome.tokens, elapsed, waited, typical=typical)
        return learning_rate, outcome

    def _validate_if_due(self) -> dict[str, float]:
        every = self.job.training.validate_every
        if not every or self.state.step % every:
            return {}
        quality = measure(
            self.called,
            self.job.validation.batches(),
            self.job.numerics,
            micro_batch_size=self.job.training.micro_batch_size,
        )
        # Each process has measured the same; which checkpoint is the best all must decide alike.
        figures = self.job.numerics.processes.first(lambda: quality.values)
        self.state.note_validation(figures)
        return figures

    def leave_if_asked(self) -> None:
        """Save and raise Interrupted if a signal has come.

        Raises:
            DiskError: also where a checkpoint that is written aside could not be.
        """
        self._saver.check()
        number = self.job.numerics.processes.agreed_signal(self.stop.requested)
        if number is None:
            return
        self._save()
        self._saver.finish()
        raise Interrupted(
            f"stopped by a signal; arm {self.job.arm!r}, seed {self.job.seed}, is saved at step "
            f"{self.state.step} of {self.total_steps}",
            number,
        )

    def _save(self) -> None:
        """Write a checkpoint of this step unless there is one already."""
        processes = self.job.numerics.processes
        if self._saved_step == self.state.step:
            self._saver.tidy(self.state)
            return
        state, scaler = self.state, self.job.numerics.scaler
        state.seconds = time.perf_counter() - self._clock
        state.data = self._batches.state_dict()
        state.scaler = scaler.state_dict() if scaler is not None else {}
        state.rng = capture_rng()
        if processes.is_first and self.job.directory.metrics.exists():
            flush(self.job.directory.metrics)  # its lines are not written again after a resume
        self._saver.save(state)
        self._saved_step = state.step
