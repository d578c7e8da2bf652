"""How long an arm would train, from about a second of its own optimiser steps.

The steps are real ones (``take_step`` with the arm's model, optimiser and precision) on random
tokens, with as many rows as fit a moment; what they achieve in FLOP/s gives the time of the rest.
Reading data, validation, checkpoints and a warming-up processor are not in it, so a run takes
somewhat longer.
"""

from __future__ import annotations

import time
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

__all__ = ["Speed", "measured_speed"]

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
        tokens, seconds = _timed(arm, Numerics.pick(device, dtype), length)
    except (WuNengError, torch.OutOfMemoryError) as error:
        return Speed(None, str(error).splitlines()[0])
    finally:
        torch.set_num_threads(before)
    return Speed(training_flops_per_token(config, length) * tokens / seconds)


def _timed(arm: ArmPlan, numerics: Numerics, length: int) -> tuple[int, float]:
    """Tokens of a step, and its median seconds."""
    from wuneng.model import WuNengForCausalLM  # slow to import

    plain: dict[str, object] = {"compile": False}  # compiling would take longer than what is timed
    if arm.training.has_low_bit_moments:
        plain["optimizer"] = "adamw"
    training, vocabulary = arm.training.model_copy(update=plain), arm.config.vocab_size
    with torch.random.fork_rng(devices=[]):
        model = WuNengForCausalLM(arm.config).to(numerics.device)
        called = prepare_model(model, training)
        optimizer = build_optimizer(model, training)
        step = 0

        def seconds(rows: int) -> float:
            nonlocal step
            step += 1
            ids = torch.randint(vocabulary, (rows, length), device=numerics.device)
            batch = Batch(ids, ids, None, "measured", length)
            start = time.perf_counter()
            take_step(called, optimizer, batch, training, numerics, step=step, arm=arm.name)
            return time.perf_counter() - start

        seconds(1)  # builds kernels, fills caches
        end = time.perf_counter() + _BUDGET_SECONDS
        rows, most = 1, training.micro_batch_size or training.batch_size
        times = [seconds(rows)]
        # A row alone is slower than many together: as many as the recipe has, or a moment allows.
        while rows < most and times[-1] < _BUDGET_SECONDS / 8:
            rows = min(most, 4 * rows)
            times = [seconds(rows)]
        while time.perf_counter() < end:
            times.append(seconds(rows))
    return rows * length, median(times)
