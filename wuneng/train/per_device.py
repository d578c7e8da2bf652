"""What each of several devices would hold and how long they would take at least: computed, not
measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from wuneng.distributed.degrees import Degrees, degrees_for
from wuneng.recipe import Parallel
from wuneng.train.capturable import check_captured
from wuneng.train.peak_memory import logits_of, most_activations
from wuneng.train.phases import Phase
from wuneng.train.plan import ArmPlan
from wuneng.train.shares import check_length, check_moments, check_rows

__all__ = ["Roof", "per_device", "processes_of"]

_HOST = 8
"""Processes of one host, where there are more and they can be divided so."""
_FLOAT32 = 4
_MOVED = 10
"""Numbers that a step moves for each parameter at least, as ``bench.roofline`` counts them."""
_MOMENTS = 8
"""Bytes of two moments in float32, which are among those, read and written."""


@dataclass(frozen=True)
class Roof:
    """What a device does at most, and who says so."""

    source: str
    flops: float
    """Per second."""
    bandwidth: float
    """Bytes per second."""
    memory: float = float("inf")
    """Bytes."""


def processes_of(parallel: Parallel) -> int:
    """How many processes a recipe asks for by itself; ``auto`` asks for none."""
    fixed = (n for n in (parallel.replicate, parallel.shard) if n != "auto")
    size = parallel.context
    for number in fixed:
        size *= number
    return size


def per_device(
    arm: ArmPlan,
    parallel: Parallel,
    processes: int,
    device: str,
    element: int,
    roof: Roof | None,
) -> dict[str, Any]:
    """Memory of each of ``processes`` devices, and seconds of training, ready for JSON.

    Args:
        device: ``cpu`` or another, whose chunks of logits are larger.
        element: bytes of an activation.
        roof: None: no time is computed, and no memory is too small.

    Raises:
        InputError: as ``degrees_for``, or the batch has fewer rows than there are copies.
    """
    degrees = degrees_for(
        parallel,
        processes,
        host_size=_HOST if processes % _HOST == 0 else processes,
        state_bytes=arm.state_bytes,
        device_bytes=roof.memory if roof is not None else float("inf"),
    )
    check_captured(arm, processes)
    check_rows(arm.training.batch_size, degrees.data)
    check_moments(arm.name, arm.training, degrees.shard)
    if degrees.context > 1:
        check_length(arm.training.sequence_length, degrees.context)
    memory = _memory(arm, degrees, parallel, device, element)
    total = sum(memory.values())
    return {
        "processes": processes,
        "degrees": str(degrees),
        "memory": {**memory, "total": total},
        "fits": None if roof is None or roof.memory == float("inf") else total < roof.memory,
        "seconds": None if roof is None else _seconds(arm, degrees, roof),
        "roof": None if roof is None else roof.source,
    }


def _memory(
    arm: ArmPlan, degrees: Degrees, parallel: Parallel, device: str, element: int
) -> dict[str, int]:
    """Bytes by what they hold; ``gathered``: what of the others is there for a moment."""
    facts, training, config = arm.facts, arm.training, arm.config
    rows = -(-training.batch_size // degrees.data)
    rows = min(rows, training.micro_batch_size or rows)
    length = -(-training.sequence_length // degrees.context)
    phases = [_of_one(phase, rows, length) for phase in arm.phases]
    activations, logits = max(
        (most_activations(arm, phase, device, element), logits_of(arm, phase, device))
        for phase in phases
    )
    shard = degrees.of_weights.shard
    gathered = 0
    if shard > 1:  # what stands outside the layers; the layer at work, the next, and a gradient
        outside = config.vocab_size * config.hidden_size * (1 + (not config.tie_word_embeddings))
        layer = (facts.parameters - outside) / config.num_hidden_layers
        weight = _FLOAT32 if parallel.gather == "fp32" else element
        gathered += int(weight * (outside + 2 * layer) + _FLOAT32 * layer)
    if degrees.context > 1:  # keys and values of whole sequences
        groups, size = config.num_key_value_heads or 0, config.head_dim or 0
        every = training.recomputed_every
        layers = [n for n in range(config.num_hidden_layers) if config.has_attention(n)]
        again = [n for n in layers if every and n % every == 0]  # of these, one at a time
        kept = len(layers) - len(again) + min(1, len(again))
        gathered += 2 * rows * training.sequence_length * groups * size * element * kept
    return {
        "weights": _FLOAT32 * -(-facts.parameters // shard),
        "gradients": _FLOAT32 * -(-facts.trainable // shard),
        "optimizer": training.moment_bytes * -(-facts.trainable // shard),
        "activations": activations - logits,
        "logits": logits,
        "gathered": gathered,
    }


def _of_one(phase: Phase, rows: int, length: int) -> Phase:
    """The phase as one device sees it."""
    own = {"batch_size": rows, "micro_batch_size": rows, "sequence_length": length}
    return replace(phase, training=phase.training.model_copy(update=own))


def _seconds(arm: ArmPlan, degrees: Degrees, roof: Roof) -> float:
    """The longer of computing and of moving weights, of all steps."""
    facts, training = arm.facts, arm.training
    if not arm.trains:
        return 0.0
    flops = facts.flops_per_token * training.tokens_per_step / degrees.size
    of_one = _MOVED * _FLOAT32 - 2 * (_MOMENTS - training.moment_bytes)
    moved = of_one * facts.parameters / degrees.of_weights.shard
    return training.total_steps * max(flops / roof.flops, moved / roof.bandwidth)
