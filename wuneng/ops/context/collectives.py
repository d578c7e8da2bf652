"""What crosses from rank to rank, with gradients.

torch's own differentiable collectives are not used: ``torch.distributed.nn.functional`` and
``torch.distributed.tensor.experimental`` (its context parallelism and ring attention) are
experimental and change between releases, take pieces of equal length only, and balance attention by
giving each rank two distant pieces, which a recurrence cannot follow.

Every rank must run the same collectives in the same order, backward too. Autograd runs the nodes
of a graph in the reverse order of their making, so that holds as long as what each of them returns
is connected with the loss on every rank: multiply by zero or select nothing rather than leave it
out. All of these can be differentiated once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, ParamSpec

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from wuneng.ops.context.active import Context, process_group

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

Arguments = ParamSpec("Arguments")


def _uncompiled(function: Callable[Arguments, Tensor]) -> Callable[Arguments, Tensor]:
    """``torch.compiler.disable``, asked for at the first call: it imports the compiler, for which
    those who only plan a run should not wait."""

    @cache
    def disabled() -> Callable[Arguments, Tensor]:
        return torch.compiler.disable(function)  # type: ignore[no-any-return]

    @wraps(function)
    def called(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Tensor:
        return disabled()(*args, **kwargs)

    return called


@_uncompiled
def gather_tokens(x: Tensor, lengths: tuple[int, ...], context: Context) -> Tensor:
    """Every rank's tokens in a row, ``[sum of lengths, ...]``, on every rank.

    Gradients go back to the rank whose tokens they are, added in the order of ranks in float32 or
    wider, so that a run repeats to the last bit.

    Args:
        x: this rank's, ``[lengths[rank], ...]``, any dtype.
        lengths: tokens of every rank.
    """
    gathered: Tensor = _GatherTokens.apply(x, lengths, context)
    return gathered


@_uncompiled
def from_previous_rank(x: Tensor, context: Context) -> Tensor:
    """The ``x`` of the rank before, of the same shape and dtype; zeros on rank 0."""
    received: Tensor = _FromPrevious.apply(x, context)
    return received


@_uncompiled
def summed_over_ranks(x: Tensor, context: Context) -> Tensor:
    """The sum of all ranks' ``x``. Of its gradient every rank keeps its own share: a loss that is
    added up like this is differentiated as if the others' shares were numbers."""
    total: Tensor = _Sum.apply(x, context)
    return total


@_uncompiled
def gather_integers(x: Tensor, context: Context) -> Tensor:
    """All ranks' integers ``[ranks, *x.shape]``; shapes must be equal."""
    found = x.new_empty(context.ranks, *x.shape)
    dist.all_gather(list(found.unbind()), x.contiguous(), group=context.group)
    return found


def sum_gradients(
    parameters: Iterable[Tensor], group: ProcessGroup | DeviceMesh | None = None
) -> None:
    """Add every rank's ``.grad`` up, in place: the gradients of the whole sequence's loss.

    Args:
        parameters: the same on every rank; those without a gradient count as zero there, and stay
            without one where no rank has it.
        group: as of :func:`wuneng.ops.context.context_parallel`.
    """
    found = process_group(group)
    trained = [p for p in parameters if p.requires_grad]
    if not trained or dist.get_world_size(found) == 1:
        return
    has = torch.tensor([p.grad is not None for p in trained], dtype=torch.int64)
    has = has.to(trained[0].device)
    dist.all_reduce(has, group=found)
    for parameter, ranks in zip(trained, has.tolist(), strict=True):
        if ranks:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad, group=found)


class _GatherTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, lengths: tuple[int, ...], context: Context) -> Tensor:
        ctx.lengths, ctx.context = lengths, context
        longest = max(lengths)
        everyone = x.new_empty(context.ranks * longest, *x.shape[1:])
        pieces = everyone.split(longest)
        dist.all_gather(list(pieces), _padded(x, longest), group=context.group)
        if min(lengths) == longest:
            return everyone
        return torch.cat([part[:n] for part, n in zip(pieces, lengths, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        lengths, context = ctx.lengths, ctx.context
        longest, dtype = max(lengths), gradient.dtype
        sent = torch.cat([_padded(part, longest) for part in gradient.split(lengths)])
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=context.group)
        shares = received.unflatten(0, (context.ranks, longest))
        total = shares.sum(0, dtype=torch.promote_types(dtype, torch.float32)).to(dtype)
        return total[: lengths[context.rank]], None, None


def _padded(x: Tensor, length: int) -> Tensor:
    missing = length - x.shape[0]
    if not missing:
        return x.contiguous()
    return torch.cat([x, x.new_zeros(missing, *x.shape[1:])])


class _FromPrevious(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, context: Context) -> Tensor:
        ctx.context = context
        return _passed_on(x, context, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _passed_on(gradient, ctx.context, -1), None


def _passed_on(x: Tensor, context: Context, step: int) -> Tensor:
    """What the rank ``step`` before this one has; zeros where there is none."""
    sent, received = x.contiguous(), torch.zeros_like(x, memory_format=torch.contiguous_format)
    operations = []
    for operation, tensor, peer in (
        (dist.isend, sent, context.rank + step),
        (dist.irecv, received, context.rank - step),
    ):
        if 0 <= peer < context.ranks:
            operations.append(dist.P2POp(operation, tensor, group=context.group, group_peer=peer))
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    return received


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, context: Context) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=context.group)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
