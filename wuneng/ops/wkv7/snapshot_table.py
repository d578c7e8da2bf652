"""Snapshots in the chunked form: where boundary states are kept, and their reads.

A boundary is the start of a chunk (C divides ``every`` and chunks are aligned to absolute
positions), so its state is at hand; it is copied into one table ``[slots, S, N, N]``:

    slot 0               the zero state, for boundaries before a sequence's first
    sequences x n        the rings that came in, newest first
    the rest             boundaries crossed in this call

All tokens of a chunk read the same slots. Reading the state now with weight gamma_0 equals reading
it with the vector gamma_0 r, so the chunk algebra needs to know nothing of snapshots.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from wuneng.ops.wkv7.packing import Plan


@dataclass(frozen=True, eq=False)
class SnapshotPlan:
    """Slots of the table; chunks are numbered in plan order (see ``packing``).

    Attributes:
        count: n.
        slots: size of the table.
        reads: ``[n, chunks]`` slot that a chunk's tokens read as snapshot j.
        kept: ``[chunks]`` slot that a chunk's start state goes to, 0 if that is no boundary; on the
            CPU.
        final: ``[sequences * n]`` slots of the outgoing rings.
        closed: ``[m]`` sequences whose newest snapshot is their final state: they end on a
            boundary.
    """

    count: int
    slots: int
    reads: Tensor
    kept: Tensor
    final: Tensor
    closed: Tensor


def max_slots(sequences: int, count: int, tokens: int, every: int) -> int:
    """Upper bound on :attr:`SnapshotPlan.slots` from shapes alone; ``tokens`` of all sequences."""
    return 1 + sequences * (count + 1) + tokens // every


@lru_cache(maxsize=32)
def plan_snapshots(plan: Plan, every: int, count: int, device: torch.device) -> SnapshotPlan:
    """Assign slots for n = ``count`` snapshots at multiples of ``every``."""
    sequences = len(plan.lengths)
    seen = torch.tensor(plan.positions, dtype=torch.long)
    last = seen + torch.tensor(plan.lengths, dtype=torch.long)
    # Boundaries strictly inside: after the tokens seen before, before the last token's end.
    crossed = ((last - 1).clamp(min=0) // every - seen // every).clamp(min=0)
    first_own = 1 + sequences * count + crossed.cumsum(0) - crossed

    def slot(tokens: Tensor, sequence: Tensor) -> Tensor:
        """Slot of the state of ``sequence`` after ``tokens`` (a boundary), both ``[m]``."""
        age = seen[sequence] // every - tokens // every
        ring = 1 + sequence * count + age
        own = first_own[sequence] - age - 1
        return torch.where(tokens <= 0, 0, torch.where(age >= 0, ring, own))

    chunk_boundary = plan.chunk_start // every
    reads = [slot((chunk_boundary - j) * every, plan.chunk_sequence) for j in range(count)]
    inside = (plan.chunk_start % every == 0) & (plan.chunk_start > seen[plan.chunk_sequence])
    kept = torch.where(inside, slot(plan.chunk_start, plan.chunk_sequence), 0)
    everyone = torch.arange(sequences)
    closed = (
        (last % every == 0) & (last > seen) if count else torch.zeros_like(last, dtype=torch.bool)
    )
    final = [slot((last // every - j) * every, everyone) for j in range(count)]
    if count:
        # Its state is not in the table: whoever reads the ring puts the final state there.
        final[0] = torch.where(closed, 0, final[0])
    none = torch.zeros(0, len(plan.chunk_start), dtype=torch.long)
    return SnapshotPlan(
        count,
        int(1 + sequences * count + crossed.sum()),
        torch.stack(reads).to(device) if count else none.to(device),
        kept,
        (torch.stack(final, 1).flatten() if count else none[:, 0]).to(device),
        closed.nonzero().squeeze(1).to(device),
    )


def start_table(plan: SnapshotPlan, table: Tensor, ring: Tensor | None, sequences: int) -> None:
    """Put the zero state and the incoming rings in place."""
    first_own = 1 + plan.count * sequences
    table[0].zero_()
    if ring is None:
        table[1:first_own].zero_()
    else:
        table[1:first_own].copy_(ring.flatten(0, 1))


def keep_boundaries(plan: SnapshotPlan, table: Tensor, starts: Tensor, chunks: slice) -> None:
    """Copy the boundary states among ``starts`` ``[chunks * S, N, N]`` into the table."""
    which, slots = _kept(plan, chunks, table.device)
    if which.numel():
        states = starts.view(-1, *table.shape[1:])
        table.index_copy_(0, slots, states.index_select(0, which))


def final_ring(plan: SnapshotPlan, table: Tensor, final_state: Tensor) -> Tensor:
    """``[sequences, n, S, N, N]``, what the next token of each sequence will read."""
    ring = table.index_select(0, plan.final)
    ring = ring.view(final_state.shape[0], plan.count, *table.shape[1:])
    if plan.closed.numel():
        ring[plan.closed, 0] = final_state[plan.closed]
    return ring


def read_snapshots_(
    plan: SnapshotPlan, table: Tensor, y: Tensor, r: Tensor, weights: Tensor, chunks: slice
) -> None:
    """Add the snapshots' reads to ``y`` ``[R, C, N]``; r and weights are views ``[..., C, .]``."""
    for j in range(plan.count):
        states = table.index_select(0, plan.reads[j, chunks]).flatten(0, 1)
        y.baddbmm_(_rows(r * weights[..., j + 1 : j + 2], y.dtype), states.transpose(1, 2))


def final_ring_gradient(
    plan: SnapshotPlan, d_ring: Tensor | None, d_final: Tensor, table: Tensor
) -> Tensor:
    """Start the table's gradient from the outgoing rings'; ``d_final`` gets its share in place."""
    d_table = torch.zeros_like(table)
    if d_ring is None or plan.count == 0:
        return d_table
    if plan.closed.numel():
        d_final.index_add_(0, plan.closed, d_ring[plan.closed, 0].to(d_final.dtype))
    accumulate_(d_table, plan.final, d_ring.flatten(0, 1).to(d_table.dtype))
    return d_table


def read_gradients(
    plan: SnapshotPlan,
    table: Tensor,
    d_table: Tensor,
    d_y: Tensor,
    r: Tensor,
    weights: Tensor,
    chunks: slice,
    d_weights: Tensor,
) -> Tensor:
    """Gradients of :func:`read_snapshots_`.

    Adds to ``d_table``, writes ``d_weights[..., 1:]`` (view ``[..., C, 1 + n]``) and returns the
    reads' share of dr, ``[..., C, N]``.
    """
    d_r = torch.zeros(r.shape, dtype=d_y.dtype, device=d_y.device)
    for j in range(plan.count):
        slots = plan.reads[j, chunks]
        gamma = weights[..., j + 1 : j + 2]
        d_states = torch.bmm(d_y.transpose(1, 2), _rows(r * gamma, d_y.dtype))
        accumulate_(d_table, slots, d_states.view(-1, *table.shape[1:]))
        states = table.index_select(0, slots).flatten(0, 1)
        d_read = torch.bmm(d_y, states).view(r.shape)
        d_weights[..., j + 1].copy_((d_read * r).sum(-1))
        d_r.addcmul_(d_read, gamma.to(d_r.dtype))
    return d_r


def add_boundary_gradients_(
    plan: SnapshotPlan, d_table: Tensor, d_starts: Tensor, chunks: slice
) -> None:
    """Hand the table's gradients to the states ``[chunks * S, N, N]`` they were copied from."""
    which, slots = _kept(plan, chunks, d_table.device)
    if which.numel():
        states = d_starts.view(-1, *d_table.shape[1:])
        states.index_add_(0, which, d_table.index_select(0, slots))


def accumulate_(table: Tensor, slots: Tensor, values: Tensor) -> None:
    """table[slots] += values where slots repeat: the same bits every time, on every device."""
    if table.device.type == "cpu":
        table.index_add_(0, slots, values)
    else:
        table.index_put_((slots,), values, accumulate=True)


def _kept(plan: SnapshotPlan, chunks: slice, device: torch.device) -> tuple[Tensor, Tensor]:
    """Boundary chunks within ``chunks``, counted from its start, and their slots."""
    slots = plan.kept[chunks]
    which = slots.nonzero().squeeze(1)
    return which.to(device), slots[which].to(device)


def _rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``[..., C, N]`` to contiguous rows ``[R, C, N]``."""
    return x.to(dtype).reshape(-1, *x.shape[-2:])
