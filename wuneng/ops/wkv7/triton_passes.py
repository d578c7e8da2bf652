"""Launches of the two scans: whole sequences in one pass, or a pass over segments of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wuneng.ops.wkv7.triton_backward import wkv7_backward_kernel
from wuneng.ops.wkv7.triton_forward import wkv7_forward_kernel
from wuneng.ops.wkv7.triton_kept_tables import kept_table
from wuneng.ops.wkv7.triton_launch import (
    Launch,
    backward_launch,
    forward_launch,
    on_device,
    precision,
    processors,
    segment_length,
    state_gradients_launch,
)
from wuneng.ops.wkv7.triton_state_gradients import wkv7_state_gradients_kernel
from wuneng.ops.wkv7.triton_tables import (
    Segments,
    boundary_rows,
    cut_sequences,
    full_table,
    max_segments,
    rows_per_sequence,
)


def cut_where_few(
    v: Tensor,
    cu_seqlens: Tensor | None,
    position: Tensor | None,
    chunk: int,
    values: int,
    segments: int,
    choose: Callable[..., Launch],
) -> Segments | None:
    """The sequences in segments, or None where one pass serves; ``choose`` is the one-pass launch.

    Nothing here waits for the device.
    """
    batch, tokens, heads, size = v.shape
    sequences = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    device, count = v.device, sequences * heads
    values = choose(v.dtype, size, chunk, count, processors(device), values).values
    programs = count * (size // values)
    length = segment_length(segments, tokens, chunk, programs, count, processors(device))
    if length == 0:
        return None
    has_position = position is not None
    packed = cu_seqlens is not None
    rows = boundary_rows(tokens, chunk, sequences, packed, has_position)
    bound = sequences * -(-tokens // length)
    if packed or has_position:
        bound = max_segments(batch * tokens, sequences, length, chunk, has_position)

    def segments_of_sequences() -> Segments:
        table = full_table(batch, tokens, cu_seqlens, position, chunk, device)
        return cut_sequences(table, length, bound, chunk, rows)

    if position is not None:
        return segments_of_sequences()
    sizes = (batch, tokens, chunk, length, bound, rows)
    return kept_table(segments_of_sequences, cu_seqlens, device, *sizes)


def scan(
    inputs: tuple[Tensor, ...],
    initial_state: Tensor | None,
    table: Tensor | None,
    y: Tensor,
    final_state: Tensor,
    states: Tensor | None,
    chunk: int,
    values: int,
) -> None:
    """Launch the forward kernel on contiguous tensors, a program per (row of final_state, head)."""
    tokens, heads, size = y.shape[1:]
    programs = final_state.shape[0] * heads
    launch = forward_launch(y.dtype, size, chunk, programs, processors(y.device), values)
    with on_device(y):
        wkv7_forward_kernel[(programs * (size // launch.values),)](
            *(*inputs, initial_state, table, y, final_state, states),
            *(tokens, rows_per_sequence(tokens, chunk), heads),
            HAS_INITIAL=initial_state is not None,
            HAS_TABLE=table is not None,
            STORE_BOUNDARIES=states is not None,
            **_constants(y, launch),
        )


def _constants(like: Tensor, launch: Launch) -> dict[str, object]:
    return {
        "SIZE": like.shape[-1],
        "VALUES": launch.values,
        "CHUNK": launch.chunk,
        "num_warps": launch.warps,
        "num_stages": launch.stages,
        **precision(like.dtype),
    }


def scan_back(
    inputs: tuple[Tensor, ...],
    states: Tensor,
    given: tuple[Tensor | None, Tensor, Tensor | None, Tensor | None],
    gradients: Sequence[Tensor],
    d_initial_state: Tensor,
    chunk: int,
    values: int,
) -> None:
    """Launch the two backward passes: the state's gradient, a program per (row of
    d_initial_state, head), then all others, a program per (row of states, head).

    ``given`` are table, dy, d_final_state and d_states; ``gradients`` of the six inputs, written.
    """
    table, dy, d_final_state, d_states = given
    (tokens, heads, size), sequences = dy.shape[1:], d_initial_state.shape[0]
    chunk_gradients = torch.empty_like(states)
    programs, rows = sequences * heads, rows_per_sequence(tokens, chunk)
    first = state_gradients_launch(dy.dtype, size, chunk, programs, processors(dy.device), values)
    second = backward_launch(dy.dtype, size, chunk, values)
    blocks = size // second.values
    parts = list(gradients)
    if blocks > 1:
        # dv's rows belong to one block each; the other gradients are sums over blocks.
        parts = [
            x if x is gradients[3] else x.new_empty(blocks, *x.shape, dtype=torch.float32)
            for x in gradients
        ]
    with on_device(dy):
        wkv7_state_gradients_kernel[(programs * (size // first.values),)](
            *(*inputs, *given, chunk_gradients, d_initial_state, tokens, rows, heads),
            HAS_FINAL=d_final_state is not None,
            HAS_TABLE=table is not None,
            HAS_BOUNDARIES=d_states is not None,
            **_constants(dy, first),
        )
        wkv7_backward_kernel[(states.shape[0] * heads * blocks,)](
            *(*inputs, states, chunk_gradients, table, dy, *parts),
            *(sequences, tokens, rows, heads, dy.numel()),
            HAS_TABLE=table is not None,
            **_constants(dy, second),
        )
    for part, gradient in zip(parts, gradients, strict=True):
        if part is not gradient:
            # A fixed order of summation: atomics would make gradients differ from run to run.
            gradient.copy_(part.sum(0))
