"""The whole forward and the whole backward of the chunked form, group by group.

Between the passes only the states before each chunk (and the snapshot table) are kept; everything
else is recomputed, which is cheaper than moving it through memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wuneng.ops.wkv7 import snapshot_table
from wuneng.ops.wkv7.chunk_algebra import factorise, read_states, transition
from wuneng.ops.wkv7.chunk_backward import input_gradients, reverse_transition
from wuneng.ops.wkv7.chunk_scan import GroupGradients, GroupStates
from wuneng.ops.wkv7.packing import Group, Plan, make_plan
from wuneng.ops.wkv7.reference import compute_dtype
from wuneng.ops.wkv7.segments import Segment
from wuneng.ops.wkv7.snapshot_table import SnapshotPlan, plan_snapshots

# Rows (chunks x heads) that are worked on together. On a CPU they should stay in its caches.
CPU_ROW_BUDGET = 64
OTHER_ROW_BUDGET = 1 << 20


@dataclass(frozen=True)
class Call:
    """One call's arguments, as both passes use them.

    Attributes:
        inputs: r, w, k, v, a, b ``[B, T, S, N]``.
        weights: the snapshots' gamma ``[B, T, S, 1 + n]``, or None.
        plan, snapshots: the layout; ``snapshots`` is None exactly where ``weights`` is.
        dtype: of state and arithmetic.
    """

    inputs: list[Tensor]
    weights: Tensor | None
    plan: Plan
    snapshots: SnapshotPlan | None
    dtype: torch.dtype

    @property
    def heads(self) -> int:
        return self.inputs[0].shape[2]

    def load(self, segment: Segment) -> tuple[list[Tensor], Tensor, Tensor | None]:
        """The segment's views r, w, k, v, a, b with r weighted by gamma_0; r alone; gamma."""
        views = [segment.load(x) for x in self.inputs]
        r = views[0]
        if self.weights is None:
            return views, r, None
        weights = segment.load(self.weights)
        views[0] = r.to(self.dtype) * weights[..., :1]
        return views, r, weights


def prepare(
    inputs: list[Tensor],
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    weights: Tensor | None,
    position: Tensor | None,
    every: int,
    chunk: int,
) -> Call:
    """Lay a call out. Raises ValueError for impossible ``cu_seqlens`` or positions."""
    batch, tokens, heads, _ = inputs[0].shape
    device = inputs[0].device
    budget = CPU_ROW_BUDGET if device.type == "cpu" else OTHER_ROW_BUDGET
    plan = make_plan(
        batch,
        tokens,
        None if cu_seqlens is None else tuple(cu_seqlens.tolist()),
        None if position is None else tuple(position.tolist()),
        chunk,
        max(1, budget // heads),
        device,
    )
    snapshots = None
    if weights is not None:
        snapshots = plan_snapshots(plan, every, weights.shape[-1] - 1, device)
    return Call(inputs, weights, plan, snapshots, compute_dtype(*inputs, initial_state))


def forward_pass(
    call: Call, initial: Tensor, y: Tensor, final: Tensor, kept: Tensor | None, table: Tensor
) -> None:
    """Fill ``y`` ``[B, T, S, N]`` and ``final`` ``[sequences, S, N, N]``.

    Args:
        initial: ``[sequences, S, N, N]``.
        kept: ``[slots, N, N]``, receives every state before a chunk; None where nobody will ask.
        table: the snapshot table, started; it is completed.
    """
    used = 0
    for group in call.plan.groups:
        states = GroupStates(group, call.heads)
        rows = group.gather(initial)
        if kept is None:
            states.buffer = rows.new_empty(states.slots, *rows.shape[1:])
        else:
            states.buffer = kept[used : used + states.slots]
            used += states.slots
        group.scatter(final, _forward_group(call, states, rows, y, table))


def _forward_group(
    call: Call, states: GroupStates, initial: Tensor, y: Tensor, table: Tensor
) -> Tensor:
    """Run one group's segments in order; returns its final states ``[size * S, N, N]``."""
    group = states.group
    active = states.width if group.uniform else states.active(0)
    states.buffer[:active].copy_(initial[:active])
    finals = initial[:0] if group.uniform else initial.clone()
    for segment, chunks in _segments(group):
        views, r, weights = call.load(segment)
        factors = factorise(views, call.dtype)
        ends = states.new_ends(segment)
        states.scan(segment, transition(factors, ends), ends, finals)
        starts = states.starts(segment)
        rows = read_states(factors, starts)
        if call.snapshots is not None and weights is not None:
            snapshot_table.keep_boundaries(call.snapshots, table, starts, chunks)
            snapshot_table.read_snapshots_(call.snapshots, table, rows, r, weights, chunks)
        target = segment.target(y)
        target.copy_(rows.view(target.shape))
        segment.commit(y, target)
    return states.buffer[states.offsets[-1] :] if group.uniform else finals


def backward_pass(
    call: Call,
    d_y: Tensor,
    d_final: Tensor,
    final: Tensor,
    kept: Tensor,
    table: Tensor,
    d_table: Tensor,
    d_inputs: list[Tensor],
    d_initial: Tensor,
    d_weights: Tensor,
) -> None:
    """Fill ``d_inputs``, ``d_initial``, ``d_weights`` (shaped as what they belong to).

    Args:
        d_y, d_final: gradients of y and of the final state.
        final, kept, table: what :func:`forward_pass` filled.
        d_table: the table's gradient so far, from the outgoing rings; the incoming rings' gradient
            is complete in it afterwards.
    """
    used = 0
    for group in call.plan.groups:
        states = GroupStates(group, call.heads)
        states.buffer = kept[used : used + states.slots]
        used += states.slots
        gradients = GroupGradients(states, group.gather(d_final))
        finals = group.gather(final)
        for segment, chunks in reversed(_segments(group)):
            _backward_segment(
                call, segment, chunks, gradients, finals, d_y, table, d_table, d_inputs, d_weights
            )
        group.scatter(d_initial, gradients.d_initial())


def _backward_segment(
    call: Call,
    segment: Segment,
    chunks: slice,
    gradients: GroupGradients,
    finals: Tensor,
    d_y: Tensor,
    table: Tensor,
    d_table: Tensor,
    d_inputs: list[Tensor],
    d_weights: Tensor,
) -> None:
    states = gradients.states
    views, r, weights = call.load(segment)
    factors = factorise(views, call.dtype)
    d_both = torch.empty_like(factors.removed_values)
    d_rows = d_both[:, factors.chunk :]
    d_rows.unflatten(0, r.shape[:-2]).copy_(segment.load(d_y))
    starts = states.starts(segment)
    d_starts, d_ends = gradients.begin(segment)
    matrix = reverse_transition(factors, starts, d_rows, d_starts)
    targets = [segment.target(d_x) for d_x in d_inputs]
    written = list(targets)
    if call.snapshots is not None and weights is not None:
        d_gamma = segment.target(d_weights)
        d_read = snapshot_table.read_gradients(
            call.snapshots, table, d_table, d_rows, r, weights, chunks, d_gamma
        )
        snapshot_table.add_boundary_gradients_(call.snapshots, d_table, d_starts, chunks)
        written[0] = torch.empty_like(d_read)
    gradients.scan(segment, matrix, d_starts, d_ends)
    ends = states.ends(segment, finals)
    input_gradients(factors, starts, ends, d_both, d_ends, matrix, written)
    if weights is not None:
        d_gamma[..., 0].copy_((written[0] * r).sum(-1))
        torch.addcmul(d_read, written[0], weights[..., :1].to(call.dtype), out=targets[0])
        segment.commit(d_weights, d_gamma)
    for d_x, target in zip(d_inputs, targets, strict=True):
        segment.commit(d_x, target)


def _segments(group: Group) -> list[tuple[Segment, slice]]:
    """The group's segments and which chunks, in plan order, each covers."""
    first, listed = group.offset, []
    for segment in group.segments:
        listed.append((segment, slice(first, first + sum(segment.counts))))
        first += sum(segment.counts)
    return listed
