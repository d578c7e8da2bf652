"""Which process group shares sequences at the moment.

Only a model's own ``forward`` asks; its layers are told through their layout, so that a backward
pass that computes layers again (activation checkpointing) may run outside the block.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class Context:
    """The processes that share a sequence; rank r has its r-th piece.

    Attributes:
        group: theirs.
        rank: of this process within the group.
        ranks: how many there are, 2 or more.
    """

    group: ProcessGroup
    rank: int
    ranks: int


_innermost: ContextVar[Context | None] = ContextVar("wuneng_context", default=None)
#: What torch.compile reads in its place, since it cannot look into a context variable.
_traced: Context | None = None


@contextmanager
def context_parallel(group: ProcessGroup | DeviceMesh | None = None) -> Iterator[None]:
    """In the body, a WuNeng model's call computes this rank's piece of a longer sequence.

        with context_parallel(group):
            outputs = model(**piece_of(batch, group))

    Every process of the group must make the same calls in the same order, with consecutive pieces
    of the same rows (:func:`piece_of` cuts them). Hidden states and logits are those of the piece.
    A loss made from ``labels`` is that of the whole sequence on every rank, and its ``backward()``
    leaves each rank its own share of the gradients: :func:`sum_gradients` adds them up.
    ``backward()`` may be called outside the body.

    Args:
        group: a process group, or a device mesh of one dimension; None is every process. A group
            of one process changes nothing.

    Raises:
        ValueError: there is no process group, or this process is not in it; a mesh of several
            dimensions.
    """
    global _traced
    token = _innermost.set(_context(group))
    before, _traced = _traced, _innermost.get()
    try:
        yield
    finally:
        _innermost.reset(token)
        _traced = before


@contextmanager
def single_process() -> Iterator[None]:
    """In the body, models compute whole sequences whatever context is active outside."""
    global _traced
    token = _innermost.set(None)
    before, _traced = _traced, None
    try:
        yield
    finally:
        _innermost.reset(token)
        _traced = before


def active_context() -> Context | None:
    """That of the innermost :func:`context_parallel`; None outside, and for a single process."""
    return _traced if torch.compiler.is_compiling() else _innermost.get()


def _context(group: ProcessGroup | DeviceMesh | None) -> Context | None:
    found = process_group(group)
    ranks = dist.get_world_size(found)
    return Context(found, dist.get_rank(found), ranks) if ranks > 1 else None


def process_group(group: ProcessGroup | DeviceMesh | None) -> ProcessGroup:
    """The group itself, that of a mesh, or everybody's; errors as :func:`context_parallel`."""
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError(
            "context_parallel needs a process group: start the processes with torchrun and call "
            "torch.distributed.init_process_group first"
        )
    if group is None:
        found: ProcessGroup | None = dist.group.WORLD
    elif isinstance(group, dist.ProcessGroup):
        found = group
    elif group == dist.GroupMember.NON_GROUP_MEMBER:
        found = None
    elif getattr(group, "ndim", None) == 1:
        found = group.get_group()
    else:
        dimensions = getattr(group, "mesh_dim_names", None) or getattr(group, "ndim", None)
        raise ValueError(
            "context_parallel: expected a process group or a device mesh of one dimension, got "
            + (type(group).__name__ if dimensions is None else f"a mesh of {dimensions}")
        )
    if found is None or dist.get_rank(found) < 0:
        raise ValueError("context_parallel: this process is not in the group that was given")
    return found
