"""A model in several processes: copies that add their gradients up (DDP), a model that is cut and
put together layer by layer (FSDP2), or copies of cut models (HSDP).

Gradients are summed, never averaged: every process divides its part of the loss by what the whole
batch scores, so the sum over processes is the gradient of the whole batch's mean, however unevenly
scored tokens are spread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wuneng.distributed.degrees import Degrees
from wuneng.distributed.processes import Processes

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

__all__ = ["blocks", "cut", "joined_copies", "put_away", "synchronised"]


def blocks(model: nn.Module) -> list[nn.Module]:
    """The layers of ``model``: what transformers says is not to be split."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [m for m in model.modules() if {c.__name__ for c in type(m).__mro__} & names]


def cut(
    model: nn.Module,
    processes: Processes,
    degrees: Degrees,
    device: torch.device,
    *,
    gather: torch.dtype | None = None,
    reduce: torch.dtype | None = None,
) -> None:
    """Cut ``model`` in place where ``degrees.shard`` says so: every layer by itself, and the rest.

    Its parameters become ``DTensor``s, whole only while their layer computes.

    Args:
        gather: what layers compute with; None: the type of the parameters, which keep it.
        reduce: what gradients are summed in; None: the type of the parameters.
    """
    degrees = degrees.of_weights
    if degrees.shard == 1:
        return
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    stored = next(model.parameters()).dtype
    policy = MixedPrecisionPolicy(
        param_dtype=gather,
        reduce_dtype=reduce or stored,
        cast_forward_inputs=False,  # autocast does, and rotary angles are to stay exact
    )
    mesh = processes.mesh(degrees, device)
    part = mesh["replicate", "shard"] if degrees.replicate > 1 else mesh["shard"]
    for block in blocks(model):
        fully_shard(block, mesh=part, mp_policy=policy)
    fully_shard(model, mesh=part, mp_policy=policy)
    for module in _cut_modules(model):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo has no other


def joined_copies(
    model: nn.Module, processes: Processes, degrees: Degrees, device: torch.device
) -> nn.Module:
    """What to call in place of ``model`` so that its copies add up their gradients; ``model``
    itself where it has no copies, or was cut and does so by itself."""
    degrees = degrees.of_weights
    if degrees.shard > 1 or degrees.replicate == 1:
        return model
    from torch.nn.parallel import DistributedDataParallel

    group = processes.mesh(degrees, device)["replicate"].get_group()
    known = signature(DistributedDataParallel.__init__).parameters
    later = "forward_sync_buffers"  # what torch calls it from 2.13 on
    never: dict[str, Any] = {later if later in known else "broadcast_buffers": False}
    copies = DistributedDataParallel(
        model,
        device_ids=None if device.type == "cpu" else [device],
        process_group=group,
        gradient_as_bucket_view=True,
        **never,
    )
    # A function of its own: DDP would read the annotations of `_summed`, which are strings here.
    copies.register_comm_hook(group, lambda group, bucket: _summed(group, bucket))
    return copies


def _summed(group: dist.ProcessGroup, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    work = dist.all_reduce(bucket.buffer(), group=group, async_op=True)
    future: torch.futures.Future[Any] = work.get_future()
    return future.then(lambda done: done.value()[0])


@contextmanager
def synchronised(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Backward passes in the block add up the gradients of all processes if ``wanted``; else each
    keeps its own, to be added with those of the pass that is wanted."""
    set_sync, no_sync = (
        getattr(model, name, None) for name in ("set_requires_gradient_sync", "no_sync")
    )
    if set_sync is not None:
        set_sync(wanted)
    with nullcontext() if wanted or no_sync is None else no_sync():
        yield


def put_away(model: nn.Module) -> None:
    """Cut again what a forward pass put together and no backward pass followed."""
    for module in _cut_modules(model):
        module.reshard()


def _cut_modules(model: nn.Module) -> list[FSDPModule]:
    # Asked by name: importing the class takes as long as training a small model.
    return [module for module in model.modules() if hasattr(module, "reshard")]  # type: ignore[misc]
