"""How long an arm would train, from about a second of its own optimiser steps.

The steps are real ones (``take_step`` with the arm's model, optimiser and precision) on random
tokens, with as many rows as fit a moment; the time of more rows follows, the optimiser's update
being that of any batch (clipping, which is short, is counted with the rows). What a whole step
achieves in FLOP/s gives the time of the rest.
Reading data, validation, checkpoints and a warming-up processor are not in it, so a run takes
somewhat longer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch

from wuneng.data.batch import Batch
from wuneng.device import autocast_dtype, host_memory, pick_device
from wuneng.errors import WuNengError
from wuneng.model.counting import total_parameters, training_flops_per_token
from wuneng.train.optimizer import build_optimizer
from wuneng.train.plan import ArmPlan
from wuneng.train.step import Numerics, prepare_model, take_step

__all__ = ["Speed", "measured_speed", "step_seconds"]

_BUDGET_SECONDS = 1.0
_STEP_FLOPS = 2e11
"""Of one step at most: some seconds on a slow processor."""
_SHORTEST = 64
"""Tokens of a row that a measurement may be cut to."""


@dataclass(frozen=True)
class Speed:
    """FLOP/s of training, or why there are none."""

    flops_per_second: float | None
    not_measured: str = ""


def measured_speed(arm: ArmPlan, device_name: str) -> Speed:
    """Time some steps of ``arm`` on the device that a recipe calls ``device_name``.

    All of its weights are trained in the measured steps; an arm that freezes some has fewer FLOPs.
    Neither data nor a model to start from is read, and nothing is compiled: that takes minutes.
    """
    training, config = arm.training, arm.config
    try:
        device = pick_device(device_name)
        dtype = autocast_dtype(training.precision, device)
    except WuNengError as error:
        return Speed(None, str(error))
    length = training.sequence_length
    per_token = training_flops_per_token(config, length)
    if device.type == "cpu":
        length = min(length, max(_SHORTEST, int(_STEP_FLOPS / per_token)))
        if (
            per_token * _SHORTEST > 2 * _STEP_FLOPS
            or 16 * total_parameters(config) > host_memory() / 2
        ):
            return Speed(None, "too large for this machine's processor")
    before = torch.get_num_threads()
    torch.set_num_threads(training.num_threads or before)
    try:
        seconds = _timed(arm, Numerics.pick(device, dtype), length)
    except (WuNengError, torch.OutOfMemoryError) as error:
        return Speed(None, str(error).splitlines()[0])
    finally:
        torch.set_num_threads(before)
    return Speed(training_flops_per_token(config, length) * training.tokens_per_step / seconds)


def step_seconds(arms: Sequence[ArmPlan], device_name: str, rounds: int) -> list[list[float]]:
    """Seconds of a training step of each arm, in turn: one list a round, in the arms' order.

    All take as many random rows, as many as the recipe has or a moment of the first arm allows;
    the seconds are those of the recipe's whole batch.

    Raises:
        WuNengError: the device or an arm cannot compute.
    """
    training = arms[0].training
    device = pick_device(device_name)
    numerics = Numerics.pick(device, autocast_dtype(training.precision, device))
    before = torch.get_num_threads()
    torch.set_num_threads(training.num_threads or before)
    try:
        with torch.random.fork_rng(devices=[]):
            steppers = [_Stepper(arm, numerics, training.sequence_length) for arm in arms]
            rows = steppers[0].warmed_up(_BUDGET_SECONDS / 4)
            for stepper in steppers:
                stepper.seconds(rows)  # builds kernels, fills caches
            return [[stepper.whole_seconds(rows) for stepper in steppers] for _ in range(rounds)]
    finally:
        torch.set_num_threads(before)


class _Stepper:
    """Takes real optimiser steps of an arm's model on random tokens."""

    def __init__(self, arm: ArmPlan, numerics: Numerics, length: int) -> None:
        from wuneng.model import WuNengForCausalLM  # slow to import

        self.arm, self.numerics, self.length = arm, numerics, length
        plain: dict[str, object] = {"compile": False}  # compiling takes longer than what is timed
        if arm.training.has_low_bit_moments:
            plain["optimizer"] = "adamw"
        self.training = arm.training.model_copy(update=plain)
        model = WuNengForCausalLM(arm.config).to(numerics.device)
        self.called = prepare_model(model, self.training)
        self.optimizer = build_optimizer(model, self.training)
        self.step, self.updating = 0, 0.0
        self.optimizer.register_step_pre_hook(self._update_begins)
        self.optimizer.register_step_post_hook(self._update_ends)

    def _update_begins(self, *_: object) -> None:
        self.updating = -self._clock()

    def _update_ends(self, *_: object) -> None:
        self.updating += self._clock()

    def _clock(self) -> float:
        if self.numerics.device.type == "cuda":
            torch.cuda.synchronize(self.numerics.device)
        return time.perf_counter()

    def whole_seconds(self, rows: int) -> float:
        """Those of a step of the recipe's batch, by the next step, of so many rows: all but the
        update grows with the rows."""
        taken = self.seconds(rows)
        growth = self.training.tokens_per_step / (rows * self.length)
        return (taken - self.updating) * growth + self.updating

    def seconds(self, rows: int) -> float:
        """Those of the next step, of so many rows."""
        self.step += 1
        shape = (rows, self.length)
        ids = torch.randint(self.arm.config.vocab_size, shape, device=self.numerics.device)
        batch = Batch(ids, ids, None, "measured", self.length)
        given = (self.called, self.optimizer, batch, self.training, self.numerics)
        start = time.perf_counter()
        take_step(*given, step=self.step, arm=self.arm.name)
        return time.perf_counter() - start

    def warmed_up(self, moment: float) -> int:
        """Rows of a step: a row alone is slower than many together, so as many as the recipe has,
        or ``moment`` allows."""
        self.seconds(1)  # builds kernels, fills caches
        rows, most = 1, self.training.micro_batch_size or self.training.batch_size
        last = self.seconds(rows)
        while rows < most and last < moment / 2:
            rows = min(most, 4 * rows)
            last = self.seconds(rows)
        return rows


def _timed(arm: ArmPlan, numerics: Numerics, length: int) -> float:
    """Median seconds of a step of the recipe's batch."""
    with torch.random.fork_rng(devices=[]):
        stepper = _Stepper(arm, numerics, length)
        end = time.perf_counter() + _BUDGET_SECONDS
        rows = stepper.warmed_up(_BUDGET_SECONDS / 4)
        times = [stepper.whole_seconds(rows)]
        while time.perf_counter() < end:
            times.append(stepper.whole_seconds(rows))
    return median(times)
