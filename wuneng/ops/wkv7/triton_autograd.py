"""WKV-7's Triton scans as torch operators: allocation, gradients, fake kernels.

wkv7_triton            what the interface calls: operator, then snapshot reads
wuneng::wkv7_triton_forward, _backward     the two scans (torch.library, so torch.compile sees
                                           one opaque operator and no graph break)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wuneng.ops.wkv7.reference import INPUTS_SCHEMA, Inputs
from wuneng.ops.wkv7.snapshots import Snapshots
from wuneng.ops.wkv7.step import step_with_snapshots
from wuneng.ops.wkv7.triton_launch import (
    CHUNK,
    check_inputs,
    forward_launch,
    state_gradients_launch,
)
from wuneng.ops.wkv7.triton_passes import cut_where_few, scan, scan_back
from wuneng.ops.wkv7.triton_segments import gradients_at_ends, states_at_starts
from wuneng.ops.wkv7.triton_snapshots import read_snapshots
from wuneng.ops.wkv7.triton_step import wkv7_triton_step
from wuneng.ops.wkv7.triton_tables import boundary_rows, sequence_table


def wkv7_triton(
    *inputs: *Inputs,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    snapshots: Snapshots | None = None,
    chunk: int = 0,
    values: int = 0,
    segments: int = 0,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The fused kernels over whole sequences; arguments as :func:`wuneng.ops.wkv7`.

    v's dtype sets the matrix operands: bfloat16 and float16 multiply on tensor cores as they are,
    float32 in three tf32 passes (one if torch.set_float32_matmul_precision allows). State and
    accumulation are float32. A log decay below -88 / (chunk / 2) a token would overflow: -11 at
    chunk 16, -5.5 at 32; RWKV-7's is above -0.61.

    Args:
        chunk: tokens per chunk, 16, 32 or 64; 0 chooses.
        values: value channels per program; 0 chooses by the number of heads.
        segments: into how many segments to cut T tokens that are worked on side by side; 1 for
            one pass, 0 chooses by the number of processors.

    Returns:
        y ``[B, T, S, N]`` in v's dtype, the final state ``[B or sequences, S, N, N]`` float32 and,
        with snapshots, the ring ``[B or sequences, n, S, N, N]``.

    Raises:
        ValueError: a dtype, head size or device that the kernels do not take; the message names
            the argument.
    """
    check_inputs(inputs)
    r, v = inputs[0], inputs[3]
    tensors: tuple[Tensor | None, ...] = (*inputs, initial_state)
    if snapshots is not None:
        tensors += (snapshots.weights, snapshots.ring)
    differentiated = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in tensors
    )
    if v.shape[1] == 1 and cu_seqlens is None and not differentiated:
        return _one_token(inputs, initial_state, snapshots)
    keeps_states = differentiated or snapshots is not None
    chunk = chunk or CHUNK
    position = None if snapshots is None else snapshots.position
    y, final_state, states = torch.ops.wuneng.wkv7_triton_forward(
        *inputs, initial_state, cu_seqlens, position, chunk, values, keeps_states, segments
    )
    if snapshots is None:
        return y, final_state, None
    y, ring = read_snapshots(r, y, states, snapshots, cu_seqlens, chunk)
    return y, final_state, ring


def _one_token(
    inputs: tuple[Tensor, ...], state: Tensor | None, snapshots: Snapshots | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    r, w, k, v, a, b = (x.squeeze(1) for x in inputs)
    if snapshots is None:
        y, new = wkv7_triton_step(r, w, k, v, a, b, state=state)
        return y.unsqueeze(1), new, None
    y, new, ring = step_with_snapshots(r, w, k, v, a, b, state=state, snapshots=snapshots)
    return y.unsqueeze(1), new, ring


def forward_scan(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    """What the forward operator does; its arguments are in the schema below."""
    *tensors, initial_state, cu_seqlens, position, chunk, values, keeps_states, segments = given
    v = tensors[3]
    y, final_state, states = _forward_outputs(v, cu_seqlens, position, chunk, keeps_states)
    if final_state.numel() == 0:
        return y, final_state, states
    inputs = tuple(x.contiguous() for x in tensors)
    entering = None if initial_state is None else initial_state.contiguous()
    cut = cut_where_few(v, cu_seqlens, position, chunk, values, segments, forward_launch)
    stored = states if keeps_states else None
    if cut is None:
        table = sequence_table(v.shape[0], v.shape[1], cu_seqlens, position, chunk)
        scan(inputs, entering, table, y, final_state, stored, chunk, values)
        return y, final_state, states
    starts = states_at_starts(*inputs[1:], initial_state=entering, segments=cut, chunk=chunk)
    ends = torch.empty_like(starts)
    scan(inputs, starts, cut.table, y, ends, stored, chunk, values)
    if keeps_states:
        # A segment's end and the next one's start are one row, which both have written: the second
        # is what y was computed from.
        states.index_copy_(0, cut.table[:, 3], starts.to(states.dtype))
    return y, ends.index_select(0, cut.ranges[:, 1] - 1), states


_forward = torch.library.custom_op(
    "wuneng::wkv7_triton_forward",
    forward_scan,
    mutates_args=(),
    schema=f"({INPUTS_SCHEMA}, Tensor? initial_state, Tensor? cu_seqlens, Tensor? position, "
    "SymInt chunk, SymInt values, bool keeps_states, SymInt segments) "
    "-> (Tensor, Tensor, Tensor)",
)


def _forward_outputs(
    v: Tensor, cu_seqlens: Tensor | None, position: Tensor | None, chunk: int, keeps_states: bool
) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, heads, size = v.shape
    packed = cu_seqlens is not None
    sequences = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    has_position = position is not None
    rows = boundary_rows(tokens, chunk, sequences, packed, has_position) if keeps_states else 0
    # With a table the rows are an upper bound; those that no sequence fills must not differ from
    # run to run.
    allocate = v.new_zeros if packed or has_position else v.new_empty
    return (
        torch.empty_like(v, memory_format=torch.contiguous_format),
        v.new_empty(sequences, heads, size, size, dtype=torch.float32),
        allocate(rows, heads, size, size),
    )


@_forward.register_fake
def _(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    cu_seqlens, position, chunk, _, keeps_states, *_ = given[7:]
    return _forward_outputs(given[3], cu_seqlens, position, chunk, keeps_states)


def backward_scan(*given: Any) -> tuple[Tensor, ...]:
    """What the backward operator does; its arguments are in the schema below."""
    *tensors, states, cu_seqlens, position, dy, d_final_state, d_states = given[:12]
    (chunk, values, segments), v = given[12:], tensors[3]
    gradients = _backward_outputs(*tensors, cu_seqlens=cu_seqlens)
    *parts, d_initial_state = gradients
    inputs = tuple(x.contiguous() for x in tensors)
    dy = torch.zeros_like(inputs[3]) if dy is None else dy.contiguous()
    d_final_state = None if d_final_state is None else d_final_state.contiguous()
    d_states = None if d_states is None else d_states.contiguous()
    cut = None
    if d_initial_state.numel():
        cut = cut_where_few(
            v, cu_seqlens, position, chunk, values, segments, state_gradients_launch
        )
    if cut is None:
        table = sequence_table(v.shape[0], v.shape[1], cu_seqlens, position, chunk)
        given = (table, dy, d_final_state, d_states)
        scan_back(inputs, states, given, parts, d_initial_state, chunk, values)
        return gradients
    r, w, _, _, a, b = inputs
    d_ends = gradients_at_ends(r, w, a, b, dy, d_final_state, d_states, cut, chunk)
    d_starts = torch.empty_like(d_ends)
    given = (cut.table, dy, d_ends, d_states)
    scan_back(inputs, states, given, parts, d_starts, chunk, values)
    return (*gradients[:6], d_starts.index_select(0, cut.ranges[:, 0]))


_backward = torch.library.custom_op(
    "wuneng::wkv7_triton_backward",
    backward_scan,
    mutates_args=(),
    schema=f"({INPUTS_SCHEMA}, Tensor states, Tensor? cu_seqlens, Tensor? position, Tensor? dy, "
    "Tensor? d_final_state, Tensor? d_states, SymInt chunk, SymInt values, SymInt segments) "
    f"-> ({', '.join(['Tensor'] * 7)})",
)


def _backward_outputs(*inputs: *Inputs, cu_seqlens: Tensor | None) -> tuple[Tensor, ...]:
    v = inputs[3]
    heads, size = v.shape[-2:]
    sequences = v.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    d_initial_state = v.new_empty(sequences, heads, size, size, dtype=torch.float32)
    like = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs)
    return *like, d_initial_state


@_backward.register_fake
def _(*given: Any) -> tuple[Tensor, ...]:
    return _backward_outputs(*given[:6], cu_seqlens=given[7])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, initial_state, cu_seqlens, position, chunk, values, keeps_states, segments = inputs
    if not keeps_states:
        raise RuntimeError("wkv7_triton_forward needs keeps_states=True to be differentiated")
    ctx.save_for_backward(*tensors, output[2], cu_seqlens, position)
    ctx.set_materialize_grads(False)
    ctx.choices, ctx.has_initial_state = (chunk, values, segments), initial_state is not None


def _differentiate(
    ctx: Any, dy: Tensor | None, d_final_state: Tensor | None, d_states: Tensor | None
) -> tuple[Tensor | None, ...]:
    *grads, d_initial_state = torch.ops.wuneng.wkv7_triton_backward(
        *ctx.saved_tensors, dy, d_final_state, d_states, *ctx.choices
    )
    return (
        *grads,
        d_initial_state if ctx.has_initial_state else None,
        *(None for _ in ("cu_seqlens", "position", "chunk", "values", "keeps_states", "segments")),
    )


_forward.register_autograd(_differentiate, setup_context=_setup_context)
