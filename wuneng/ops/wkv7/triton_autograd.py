"""WKV-7's Triton kernels as torch operators: allocation, launches, gradients, fake kernels.

wkv7_triton            what the interface calls: operator, then snapshot reads
wuneng::wkv7_triton_forward, _backward     the two scans (torch.library, so torch.compile sees
                                           one opaque operator and no graph break)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wuneng.ops.wkv7.snapshots import Snapshots
from wuneng.ops.wkv7.step import step_with_snapshots
from wuneng.ops.wkv7.triton_backward import wkv7_backward_kernel
from wuneng.ops.wkv7.triton_forward import wkv7_forward_kernel
from wuneng.ops.wkv7.triton_launch import (
    backward_launch,
    check_inputs,
    chunk_length,
    forward_launch,
    on_device,
    precision,
    processors,
)
from wuneng.ops.wkv7.triton_snapshots import read_snapshots
from wuneng.ops.wkv7.triton_step import wkv7_triton_step


def wkv7_triton(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    snapshots: Snapshots | None = None,
    chunk: int = 0,
    values: int = 0,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The fused kernels over whole sequences; arguments as :func:`wuneng.ops.wkv7`.

    v's dtype sets the matrix operands: bfloat16 and float16 multiply on tensor cores as they are,
    float32 in three tf32 passes (one if torch.set_float32_matmul_precision allows). State and
    accumulation are float32. A log decay below -88 / (chunk / 2) a token would overflow: -11 at
    chunk 16, -5.5 at 32; RWKV-7's is above -0.61.

    Args:
        chunk: tokens per chunk, 16, 32 or 64; 0 chooses.
        values: value channels per program; 0 chooses by the number of heads.

    Returns:
        y ``[B, T, S, N]`` in v's dtype, the final state ``[B or sequences, S, N, N]`` float32 and,
        with snapshots, the ring ``[B or sequences, n, S, N, N]``.

    Raises:
        ValueError: a dtype, head size or device that the kernels do not take; the message names
            the argument.
    """
    inputs = (r, w, k, v, a, b)
    check_inputs(inputs)
    tensors: tuple[Tensor | None, ...] = (*inputs, initial_state)
    if snapshots is not None:
        tensors += (snapshots.weights, snapshots.ring)
    differentiated = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in tensors
    )
    if v.shape[1] == 1 and cu_seqlens is None and not differentiated:
        return _one_token(inputs, initial_state, snapshots)
    keeps_states = differentiated or snapshots is not None
    if chunk == 0:
        chunk = chunk_length(v.dtype, v.shape[-1], keeps_states)
    position = None if snapshots is None else snapshots.position
    y, final_state, states = torch.ops.wuneng.wkv7_triton_forward(
        *inputs, initial_state, cu_seqlens, position, chunk, values, keeps_states
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
        y, new = wkv7_triton_step(r, w, k, v, a, b, state)
        return y.unsqueeze(1), new, None
    y, new, ring = step_with_snapshots(r, w, k, v, a, b, state, snapshots)
    return y.unsqueeze(1), new, ring


def _rows(tokens: int, chunk: int, sequences: int, packed: bool, has_position: bool) -> int:
    """Rows of boundary states to allocate, without looking at values on the device.

    Every sequence takes a row per chunk and one for its end; starting between two boundaries, or
    ending there, can add a chunk.
    """
    if packed:
        return tokens // chunk + sequences * (2 + has_position)
    return sequences * _rows_per_sequence(tokens, chunk, has_position)


def _rows_per_sequence(tokens: int, chunk: int, has_position: bool) -> int:
    return -(-tokens // chunk) + has_position + 1


def sequence_table(
    batch: int, tokens: int, cu_seqlens: Tensor | None, position: Tensor | None, chunk: int
) -> Tensor | None:
    """int64 ``[sequences, 4]``: begin, end, empty leading slots, first row of boundary states.

    None when every sequence has ``tokens`` tokens and starts on a boundary: the kernels then
    compute these themselves. Nothing here waits for the device.
    """
    if cu_seqlens is not None:
        bounds = cu_seqlens.long()
        torch._assert_async(
            (bounds[0] == 0) & (bounds[-1] == tokens) & (bounds.diff() >= 0).all(),
            f"cu_seqlens must be non-decreasing from 0 to T = {tokens}",
        )
        begin, end = bounds[:-1], bounds[1:]
    elif position is not None:
        begin = torch.arange(batch, device=position.device) * tokens
        end = begin + tokens
    else:
        return None
    lead = torch.zeros_like(begin) if position is None else position.to(begin.device) % chunk
    rows = (end - begin + lead + chunk - 1).div(chunk, rounding_mode="floor") + 1
    return torch.stack([begin, end, lead, rows.cumsum(0) - rows], dim=1)


@torch.library.custom_op("wuneng::wkv7_triton_forward", mutates_args=())
def _forward(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    position: Tensor | None,
    chunk: int,
    values: int,
    keeps_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    y, final_state, states = _forward_outputs(v, cu_seqlens, position, chunk, keeps_states)
    batch, tokens, heads, size = v.shape
    sequences = final_state.shape[0]
    if final_state.numel() == 0:
        return y, final_state, states
    launch = forward_launch(v.dtype, size, chunk, sequences * heads, processors(v.device))
    values = values or launch.values
    table = sequence_table(batch, tokens, cu_seqlens, position, chunk)
    with on_device(v):
        wkv7_forward_kernel[(sequences * heads * (size // values),)](
            *(x.contiguous() for x in (r, w, k, v, a, b)),
            None if initial_state is None else initial_state.contiguous(),
            table,
            y,
            final_state,
            states if keeps_states else None,
            tokens,
            _rows_per_sequence(tokens, chunk, False),
            heads,
            SIZE=size,
            VALUES=values,
            CHUNK=chunk,
            HAS_INITIAL=initial_state is not None,
            HAS_TABLE=table is not None,
            STORE_BOUNDARIES=keeps_states,
            num_warps=launch.warps,
            num_stages=launch.stages,
            **precision(v.dtype),
        )
    return y, final_state, states


def _forward_outputs(
    v: Tensor, cu_seqlens: Tensor | None, position: Tensor | None, chunk: int, keeps_states: bool
) -> tuple[Tensor, Tensor, Tensor]:
    batch, tokens, heads, size = v.shape
    packed = cu_seqlens is not None
    sequences = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    rows = _rows(tokens, chunk, sequences, packed, position is not None) if keeps_states else 0
    # With a table the rows are an upper bound; those that no sequence fills must not differ from
    # run to run.
    allocate = v.new_zeros if packed or position is not None else v.new_empty
    return (
        torch.empty_like(v, memory_format=torch.contiguous_format),
        v.new_empty(sequences, heads, size, size, dtype=torch.float32),
        allocate(rows, heads, size, size),
    )


@_forward.register_fake
def _(r, w, k, v, a, b, initial_state, cu_seqlens, position, chunk, values, keeps_states):  # type: ignore[no-untyped-def]
    return _forward_outputs(v, cu_seqlens, position, chunk, keeps_states)


@torch.library.custom_op("wuneng::wkv7_triton_backward", mutates_args=())
def _backward(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    states: Tensor,
    cu_seqlens: Tensor | None,
    position: Tensor | None,
    dy: Tensor | None,
    d_final_state: Tensor | None,
    d_states: Tensor | None,
    chunk: int,
    values: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = (r, w, k, v, a, b)
    dr, dw, dk, dv, da, db, d_initial_state = _backward_outputs(*inputs, cu_seqlens)
    batch, tokens, heads, size = v.shape
    programs = d_initial_state.shape[0] * heads
    launch = backward_launch(v.dtype, size, chunk, programs, processors(v.device))
    values = values or launch.values
    blocks = size // values
    summed = (dr, dw, dk, da, db)
    parts: tuple[Tensor, ...] = summed
    if blocks > 1:
        parts = tuple(x.new_empty(blocks, *x.shape, dtype=torch.float32) for x in summed)
    table = sequence_table(batch, tokens, cu_seqlens, position, chunk)
    with on_device(v):
        wkv7_backward_kernel[(programs * blocks,)](
            *(x.contiguous() for x in inputs),
            states,
            table,
            torch.zeros_like(v) if dy is None else dy.contiguous(),
            None if d_final_state is None else d_final_state.contiguous(),
            None if d_states is None else d_states.contiguous(),
            *parts[:3],
            dv,
            *parts[3:],
            d_initial_state,
            tokens,
            _rows_per_sequence(tokens, chunk, False),
            heads,
            v.numel(),
            SIZE=size,
            VALUES=values,
            CHUNK=chunk,
            HAS_FINAL=d_final_state is not None,
            HAS_TABLE=table is not None,
            HAS_BOUNDARIES=d_states is not None,
            num_warps=launch.warps,
            num_stages=launch.stages,
            **precision(v.dtype),
        )
    if blocks > 1:
        # A fixed order of summation: atomics would make gradients differ from run to run.
        for part, gradient in zip(parts, summed, strict=True):
            gradient.copy_(part.sum(0))
    return dr, dw, dk, dv, da, db, d_initial_state


def _backward_outputs(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    heads, size = v.shape[-2:]
    sequences = v.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    dr, dw, dk, dv, da, db = (
        torch.empty_like(x, memory_format=torch.contiguous_format) for x in (r, w, k, v, a, b)
    )
    d_initial_state = v.new_empty(sequences, heads, size, size, dtype=torch.float32)
    return dr, dw, dk, dv, da, db, d_initial_state


@_backward.register_fake
def _(r, w, k, v, a, b, states, cu_seqlens, *others):  # type: ignore[no-untyped-def]
    return _backward_outputs(r, w, k, v, a, b, cu_seqlens)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, initial_state, cu_seqlens, position, chunk, values, keeps_states = inputs
    if not keeps_states:
        raise RuntimeError("wkv7_triton_forward needs keeps_states=True to be differentiated")
    ctx.save_for_backward(*tensors, output[2], cu_seqlens, position)
    ctx.set_materialize_grads(False)
    ctx.chunk, ctx.values, ctx.has_initial_state = chunk, values, initial_state is not None


def _differentiate(
    ctx: Any, dy: Tensor | None, d_final_state: Tensor | None, d_states: Tensor | None
) -> tuple[Tensor | None, ...]:
    *grads, d_initial_state = torch.ops.wuneng.wkv7_triton_backward(
        *ctx.saved_tensors, dy, d_final_state, d_states, ctx.chunk, ctx.values
    )
    return (
        *grads,
        d_initial_state if ctx.has_initial_state else None,
        *(None for _ in ("cu_seqlens", "position", "chunk", "values", "keeps_states")),
    )


_forward.register_autograd(_differentiate, setup_context=_setup_context)
