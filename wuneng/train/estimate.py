"""What a planned run would take: counted from names and shapes, the time from about a second of
steps of each arm where that is wanted.
"""

from __future__ import annotations

import sys
from typing import Any

from wuneng.device import autocast_dtype, pick_device
from wuneng.model.counting import total_parameters
from wuneng.recipe import Parallel, TextData
from wuneng.train.peak_memory import phase_memory
from wuneng.train.per_device import Roof, per_device
from wuneng.train.phases import Phase
from wuneng.train.plan import ArmPlan, RunPlan
from wuneng.train.schedule import steps_before_decay
from wuneng.train.starting_point import PLAIN, Sources
from wuneng.train.teacher_rows import bytes_of_row

__all__ = ["estimate"]


def estimate(
    plan: RunPlan,
    *,
    measure: bool = False,
    parallel: Parallel | None = None,
    processes: int = 1,
    roof: Roof | None = None,
) -> dict[str, Any]:
    """Sizes and costs of the run and of every arm, ready for JSON.

    Args:
        measure: time some steps of every arm that trains; else ``seconds`` are None.
        parallel: how ``processes`` share an arm; None: ``per_device`` of each arm is None.
        roof: of each device.

    Raises:
        InputError: these processes cannot train an arm together.
    """
    training = plan.training
    return {
        "vocab_size": plan.vocabulary.size,
        "tokens_per_step": training.tokens_per_step,
        "steps": training.total_steps,
        "tokens": training.total_tokens,
        "sources": _sources_of_text(plan),
        "arms": {
            name: {
                **_arm(arm, plan.device, plan.sources, measure),
                "per_device": None
                if parallel is None
                else per_device(
                    *(arm, parallel, processes, _kind(plan.device)),
                    _activation_bytes(plan.device, arm.training.precision),
                    roof,
                ),
            }
            for name, arm in plan.arms.items()
        },
    }


def _sources_of_text(plan: RunPlan) -> list[dict[str, Any]]:
    """What is read of each source of a mixture."""
    if not isinstance(plan.data, TextData) or plan.data.mixture is None:
        return []
    from wuneng.data.shares import source_shares

    return source_shares(plan.data, plan.training, plan.vocabulary.tokenizer)


def _arm(arm: ArmPlan, device: str, sources: Sources, measure: bool) -> dict[str, Any]:
    facts, training = arm.facts, arm.training
    stages = [{"stage": phase.name, **_memory(arm, phase, device)} for phase in arm.phases]
    largest = max(stages, key=lambda stage: stage["total"])
    flops = facts.flops_per_token * (training.total_tokens if arm.trains else 0)
    return {
        "parts": dict(facts.parts),
        "parameters": facts.parameters,
        "added_percent": facts.added_percent,
        "trainable_parameters": facts.trainable,
        "intermediate_size": arm.config.intermediate_size,
        "match": arm.match,
        "learning_rate": facts.learning_rate,
        "training_flops": flops,
        "memory": {name: held for name, held in largest.items() if name != "stage"},
        "stages": stages if arm.phases[0].kind else [],
        "compile": training.compile,
        "cuda_graph": training.cuda_graph,
        "disk_bytes": _disk(arm) + _copies(arm, sources),
        "teacher_bytes": _kept_of_teachers(arm),
        **_time(arm, device, flops, measure),
    }


def _memory(arm: ArmPlan, phase: Phase, device: str) -> dict[str, Any]:
    """Bytes of training at the peak, by what they hold, and their ``total``."""
    size = _activation_bytes(device, arm.training.precision)
    held = phase_memory(arm, phase, _kind(device), size)
    return {**held, "total": sum(held.values())}


def _kind(device: str) -> str:
    return device if device.startswith(("cuda", "cpu")) else str(pick_device(device))


def _activation_bytes(device: str, precision: str) -> int:
    """Bytes of an activation. A recipe for a GPU can be planned on a machine that has none."""
    if precision != "auto":
        return 4 if precision == "fp32" else 2
    if device.startswith("cuda"):
        return 2
    here = pick_device("cpu" if device == "mps" else device)
    return 4 if autocast_dtype("auto", here) is None else 2


def _disk(arm: ArmPlan) -> int:
    """Bytes of one seed: the model, and the checkpoints that are kept (weights and moments)."""
    facts, training = arm.facts, arm.training
    checkpoint = 4 * facts.parameters + training.moment_bytes * facts.trainable
    kept = training.keep_checkpoints
    if training.schedule == "wsd" and steps_before_decay(training.total_steps, training):
        kept += 1  # the one from before the decay, from which a longer run goes on
    kept += training.keep_best + training.total_steps // (training.keep_every or sys.maxsize)
    return 4 * facts.parameters + (kept * checkpoint if arm.trains else 0)


def _kept_of_teachers(arm: ArmPlan) -> int:
    """Bytes of what teachers say in the cache, where no row comes twice; seeds, and arms with the
    same teacher, share what is of the same rows."""
    found = 0
    for phase in arm.phases:
        if phase.teacher_top_k is not None:
            training = phase.training
            rows = training.total_steps * training.batch_size
            found += rows * bytes_of_row(training.sequence_length, phase.teacher_top_k)
    return found


def _copies(arm: ArmPlan, sources: Sources) -> int:
    """Bytes of what the arm starts and learns from, where that is converted: at most float32.

    Arms and seeds that convert the same keep it once, if the disk can; this counts it for each.
    """
    found = 0
    if arm.init_from is not None and sources.converts(arm.init_from, arm.settings):
        found += 4 * total_parameters(arm.config)
    if arm.teacher is not None and sources.converts(arm.teacher.source, PLAIN):
        found += 4 * total_parameters(arm.teacher.config)
    return found


def _time(arm: ArmPlan, device: str, flops: float, measure: bool) -> dict[str, Any]:
    """Seconds of one seed, and why there are none."""
    if not flops:
        return {"seconds": 0.0, "not_measured": ""}
    if not measure:
        return {"seconds": None, "not_measured": "--no-measure"}
    from wuneng.train.measured import measured_speed

    speed = measured_speed(arm, device)
    rate = speed.flops_per_second
    return {"seconds": None if rate is None else flops / rate, "not_measured": speed.not_measured}
