"""How the processes that train together share one arm: ``parallel:`` at the arm's size."""

from __future__ import annotations

import torch

from wuneng.device import autocast_dtype, host_memory
from wuneng.distributed.degrees import SINGLE, Degrees, degrees_for
from wuneng.distributed.processes import Processes
from wuneng.errors import InputError
from wuneng.recipe import Parallel
from wuneng.train.capturable import check_captured
from wuneng.train.plan import ArmPlan
from wuneng.train.shares import check_length, check_moments, check_rows

__all__ = ["arm_degrees", "cut_dtypes", "writes_shards"]


def arm_degrees(
    arm: ArmPlan, parallel: Parallel, processes: Processes, device: torch.device
) -> Degrees:
    """Copies and shards of ``arm``; the same in all ``processes``.

    Raises:
        InputError: the recipe's numbers do not make that many processes, or the arm cannot be
            trained in that way.
    """
    check_captured(arm, processes.size, device)
    if processes.size == 1:
        return SINGLE
    degrees = processes.first(
        lambda: degrees_for(
            parallel,
            processes.size,
            host_size=processes.host_size,
            state_bytes=arm.state_bytes,
            device_bytes=_memory(device, processes.host_size),
        )
    )
    check_rows(arm.training.batch_size, degrees.data)
    if processes.size > 1 and arm.phases[0].kind:
        raise InputError(
            f"arms.{arm.name}: stages are trained by one process, got {processes.size}: what "
            "trains changes from stage to stage. Use --jobs for several arms or seeds"
        )
    if processes.size > 1 and arm.facts.state != "keep":
        raise InputError(
            f"arms.{arm.name}: state {arm.facts.state} is trained by one process, got "
            f"{processes.size}. Use --jobs for several arms or seeds"
        )
    if degrees.context > 1:
        _check_pieces(arm, degrees.context)
    if degrees.shard > 1 and autocast_dtype(arm.training.precision, device) is torch.float16:
        raise InputError(
            f"arms.{arm.name}: training.precision fp16 is not for weights that are cut among "
            f"processes (parallel.shard {degrees.shard}): its loss scale would differ between "
            "them. Use bf16, or parallel.shard: 1"
        )
    check_moments(arm.name, arm.training, degrees.shard)
    return degrees


def cut_dtypes(parallel: Parallel, precision: torch.dtype | None) -> dict[str, torch.dtype | None]:
    """What ``wuneng.distributed.wrapping.cut`` gathers and reduces in: None where that is the
    type of the parameters.

    Args:
        precision: autocast's; None: there is none.
    """
    asked = {"gather": parallel.gather, "reduce": parallel.reduce}
    return {what: precision if kind == "precision" else None for what, kind in asked.items()}


def writes_shards(parallel: Parallel, degrees: Degrees) -> bool:
    """Whether every process writes its own part of a checkpoint."""
    if parallel.checkpoints == "auto":
        return degrees.of_weights.shard > 1
    return parallel.checkpoints == "sharded"


def _check_pieces(arm: ArmPlan, context: int) -> None:
    """InputError where the arm's sequences cannot be cut for ``context`` processes."""
    from wuneng.model.context_call import check_context  # a model's imports: not for planning

    what = f"arms.{arm.name}: parallel.context {context}"
    check_length(arm.training.sequence_length, context)
    if arm.training.compile:
        raise InputError(f"{what}: set training.compile to false; pieces are not compiled yet")
    if arm.teacher is not None:
        raise InputError(f"{what}: a teacher (distill) reads whole sequences; set it to 1")
    try:
        check_context(arm.config)
    except ValueError as error:
        raise InputError(f"{what}: {error}") from None


def _memory(device: torch.device, host_size: int) -> float:
    """Bytes that one process may fill."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return host_memory() / host_size
