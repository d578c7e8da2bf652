"""Few heads and long sequences: every sequence in segments that are worked on side by side.

A segment maps the state it starts from linearly to the state it ends with:

    S_end = S_start M + F,    M = prod_t (diag(e^{w_t}) + a_t^T b_t),    F = the end from zero

    pass 1   M and F of every segment, all at once           segment_states_kernel
    pass 2   S_start of every segment, one after another     segment_scan_kernel
    pass 3   the forward kernel on every segment, all at once, as sequences of their own

Rows of M are what the recurrence without v makes of the rows of the identity, so M is more value
rows of the same scan: one kernel, twice the programs. Pass 1 reads no r and forms no y. A factor of
M has norm at most 1 for rates up to 1. Above, up to 2, it reflects, and may stretch by half what it
reflects: M then grows, but only as the recurrence itself does. Backward is the mirror image, with G
the gradient at a segment's start when none comes in at its end:

    dS_start = dS_end M^T + G

Letters in names: C tokens of a chunk, K key channels, V value channels (see triton_chunk).
"""
# mypy: disable-error-code="no-untyped-def"
# Triton traces the kernels; their tensors have no useful static type.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from wuneng.ops.wkv7.triton_chunk import (
    after_chunk,
    chunk_slots,
    decay_factors,
    gradient_before_chunk,
    load_CK,
    load_state,
    lower_products,
    multiply,
    removed_values,
    sequence_extent,
    tile_offsets,
    unit_lower_inverse,
)
from wuneng.ops.wkv7.triton_launch import (
    Launch,
    on_device,
    precision,
    processors,
    segment_scan_launch,
    segment_states_launch,
)
from wuneng.ops.wkv7.triton_tables import Segments


@triton.jit
def segment_program(table, heads, SIZE: tl.constexpr, VALUES: tl.constexpr):
    """Return `(transition, value_block, segment, head)` of this program, and its segment's extent.

    Every head has twice SIZE // VALUES programs: transition is 0 for F or G and 1 for M.
    """
    BLOCKS: tl.constexpr = SIZE // VALUES
    program = tl.program_id(0)
    transition = program % (2 * BLOCKS) // BLOCKS
    segment = program // (2 * BLOCKS) // heads
    head = program // (2 * BLOCKS) % heads
    begin, end, lead, first_row = sequence_extent(table, segment, 0, 0, True)
    return transition, program % BLOCKS, segment, head, begin, end, lead, first_row


@triton.jit
def load_removal(
    w, a, b, base, begin, end, head, heads, tile_CK, CHUNK: tl.constexpr, OPERAND: tl.constexpr
):
    """Return `(start, mask_C, a_CK, b_CK, after_CK, back_CK, enter_K, leave_K)` of a chunk.

    a^ and b^, where the chunk begins in a head's tensors and which slots hold a token, and the
    factors that its other operands need: W_i / W_mid, W_mid / W_j, W_mid and W_C / W_mid.
    """
    start, mask_C = chunk_slots(base, begin, end, head, heads, tile_CK.shape[1], CHUNK)
    log_decay_CK = load_CK(w + start, tile_CK, mask_C[:, None])
    before_CK, after_CK, back_CK, enter_K, leave_K = decay_factors(log_decay_CK, CHUNK)
    a_CK = (load_CK(a + start, tile_CK, mask_C[:, None]) * before_CK).to(OPERAND)
    b_CK = (load_CK(b + start, tile_CK, mask_C[:, None]) * back_CK).to(OPERAND)
    return start, mask_C, a_CK, b_CK, after_CK, back_CK, enter_K, leave_K


@triton.jit
def identity_rows(value_block, SIZE: tl.constexpr, VALUES: tl.constexpr):
    """Return the value block's rows of the identity."""
    value = value_block * VALUES + tl.arange(0, VALUES)
    return tl.where(value[:, None] == tl.arange(0, SIZE)[None, :], 1.0, 0.0)


@triton.jit
def segment_states_kernel(
    w, k, v, a, b,  # [tokens, heads, SIZE], any float type
    table,  # int64 [segments, 4]: begin, end, lead, first row of boundary states
    idle,  # bool [segments]: nobody asks for this segment's M and F
    results,  # float32 [2, segments, heads, SIZE, SIZE] (value, key): F, then M
    segments, heads,
    SIZE: tl.constexpr, VALUES: tl.constexpr, CHUNK: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, INVERSE_PRECISION: tl.constexpr,
):  # fmt: skip
    """The state of wkv7_forward_kernel without y, from zero and, without v, from the identity."""
    transition, value_block, segment, head, begin, end, lead, _row = segment_program(
        table, heads, SIZE, VALUES
    )
    tile_CK, tile_VC, state_VK_offsets = tile_offsets(value_block, heads, SIZE, VALUES, CHUNK)
    state_VK = identity_rows(value_block, SIZE, VALUES) * transition

    base = begin - lead
    steps = tl.where(tl.load(idle + segment), 0, tl.cdiv(end - base, CHUNK))
    for _step in range(steps):
        start, mask_C, a_CK, b_CK, _after_CK, back_CK, enter_K, leave_K = load_removal(
            w, a, b, base, begin, end, head, heads, tile_CK, CHUNK, OPERAND
        )
        mask_kv_C = mask_C & (transition == 0)
        k_CK = (load_CK(k + start, tile_CK, mask_kv_C[:, None]) * back_CK).to(OPERAND)
        v_VC = tl.load(v + start + tile_VC, mask=mask_kv_C[None, :], other=0.0).to(OPERAND)

        state_VK, u_VC = removed_values(
            state_VK, enter_K, a_CK, b_CK, k_CK, v_VC, CHUNK, OPERAND, PRECISION, INVERSE_PRECISION
        )
        state_VK = after_chunk(state_VK, u_VC, v_VC, b_CK, k_CK, leave_K, OPERAND, PRECISION)
        base += CHUNK

    result = ((transition.to(tl.int64) * segments + segment) * heads + head) * SIZE * SIZE
    tl.store(results + result + state_VK_offsets, state_VK)


@triton.jit
def segment_gradients_kernel(
    r, w, a, b,  # [tokens, heads, SIZE], any float type
    dy,  # [tokens, heads, SIZE]
    d_boundary_states,  # [rows, heads, SIZE, SIZE], gradients of the stored states, or None
    table, idle,  # as segment_states_kernel's
    results,  # float32 [2, segments, heads, SIZE, SIZE] (value, key): G, then M^T
    segments, heads,
    SIZE: tl.constexpr, VALUES: tl.constexpr, CHUNK: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, INVERSE_PRECISION: tl.constexpr,
    HAS_BOUNDARIES: tl.constexpr,
):  # fmt: skip
    """dS of wkv7_backward_kernel and no other gradient, from zero and from the identity.

    The row of stored states between two segments counts for the earlier one: G holds the gradient
    of the row at the segment's end and leaves out that of the row at its start.
    """
    transition, value_block, segment, head, begin, end, lead, first_row = segment_program(
        table, heads, SIZE, VALUES
    )
    tile_CK, tile_VC, state_VK_offsets = tile_offsets(value_block, heads, SIZE, VALUES, CHUNK)
    ds_VK = identity_rows(value_block, SIZE, VALUES) * transition

    count = tl.where(tl.load(idle + segment), 0, tl.cdiv(end - begin + lead, CHUNK))
    if HAS_BOUNDARIES:
        boundary = ((first_row + count) * heads + head) * SIZE * SIZE
        at_end_VK = d_boundary_states + boundary + state_VK_offsets
        ds_VK += tl.load(at_end_VK, mask=(transition == 0) & (count > 0), other=0.0).to(tl.float32)
    for step in range(count):
        index = count - 1 - step
        base = begin - lead + index * CHUNK
        start, mask_C, a_CK, b_CK, after_CK, _back_CK, enter_K, leave_K = load_removal(
            w, a, b, base, begin, end, head, heads, tile_CK, CHUNK, OPERAND
        )
        mask_y_C = mask_C & (transition == 0)
        r_CK = (load_CK(r + start, tile_CK, mask_y_C[:, None]) * after_CK).to(OPERAND)
        dy_VC = tl.load(dy + start + tile_VC, mask=mask_y_C[None, :], other=0.0).to(OPERAND)

        ab_CC = lower_products(a_CK, b_CK, True, OPERAND, PRECISION)
        inverse_CC = unit_lower_inverse(ab_CC, CHUNK, INVERSE_PRECISION)
        qb_CC = lower_products(r_CK, b_CK, False, OPERAND, PRECISION)

        ds_VK = ds_VK * leave_K[None, :]
        ds_VK = gradient_before_chunk(
            ds_VK, dy_VC, r_CK, a_CK, b_CK, inverse_CC, qb_CC, enter_K, OPERAND, PRECISION
        )
        if HAS_BOUNDARIES:
            boundary = ((first_row + index) * heads + head) * SIZE * SIZE
            inside_VK = d_boundary_states + boundary + state_VK_offsets
            counts = (transition == 0) & (index > 0)
            ds_VK += tl.load(inside_VK, mask=counts, other=0.0).to(tl.float32)

    result = ((transition.to(tl.int64) * segments + segment) * heads + head) * SIZE * SIZE
    tl.store(results + result + state_VK_offsets, ds_VK)


@triton.jit
def segment_scan_kernel(
    results,  # float32 [2, segments, heads, SIZE, SIZE]: own part and transition of each segment
    outer,  # [sequences, heads, SIZE, SIZE]: what enters a sequence from outside, or None
    ranges,  # int64 [sequences, 2]: first segment, and the one after the last
    entering,  # float32 [segments, heads, SIZE, SIZE]: what enters every segment
    segments, heads,
    SIZE: tl.constexpr, VALUES: tl.constexpr, HAS_OUTER: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """entering[next] = entering[this] transition[this] + own[this], in float32."""
    BLOCKS: tl.constexpr = SIZE // VALUES
    program = tl.program_id(0)
    sequence = program // BLOCKS // heads
    head = program // BLOCKS % heads
    key = tl.arange(0, SIZE)
    _, _, state_VK_offsets = tile_offsets(program % BLOCKS, heads, SIZE, VALUES, 1)
    state_KK_offsets = key[:, None] * SIZE + key[None, :]
    first = tl.load(ranges + sequence * 2)
    count = tl.load(ranges + sequence * 2 + 1) - first

    base = (sequence.to(tl.int64) * heads + head) * SIZE * SIZE
    state_VK = load_state(outer, base + state_VK_offsets, HAS_OUTER)
    for step in range(count):
        segment = first + step
        if REVERSE:
            segment = first + count - 1 - step
        base = (segment * heads + head) * SIZE * SIZE
        tl.store(entering + base + state_VK_offsets, state_VK)
        base_M = ((segment + segments) * heads + head) * SIZE * SIZE
        transition_KK = tl.load(results + base_M + state_KK_offsets)
        own_VK = tl.load(results + base + state_VK_offsets)
        state_VK = own_VK + multiply(state_VK, transition_KK, tl.float32, "tf32x3")


def states_at_starts(
    *inputs: Tensor, initial_state: Tensor | None, segments: Segments, chunk: int
) -> Tensor:
    """Passes 1 and 2: the state every segment starts from, float32 ``[M, S, N, N]``.

    Args:
        inputs: w, k, v, a, b, contiguous, ``[B, T, S, N]``.
        initial_state: ``[sequences, S, N, N]`` contiguous, or None for zero.
    """
    v = inputs[2]
    results, launch = _results(v, segments, chunk)
    with on_device(v):
        segment_states_kernel[(_programs(results, launch),)](
            *(*inputs, segments.table, segments.is_last, results),
            *results.shape[1:3],
            **_constants(v, launch),
        )
    return _scan(results, initial_state, segments, reverse=False)


def gradients_at_ends(
    r: Tensor,
    w: Tensor,
    a: Tensor,
    b: Tensor,
    dy: Tensor,
    d_final_state: Tensor | None,
    d_states: Tensor | None,
    segments: Segments,
    chunk: int,
) -> Tensor:
    """The state's gradient at every segment's end, float32 ``[M, S, N, N]``.

    That of the row of stored states at the end is left out: the backward kernel adds it.

    Args:
        r, w, a, b, dy: contiguous, ``[B, T, S, N]``.
        d_final_state: ``[sequences, S, N, N]`` contiguous, or None for zero.
        d_states: ``[rows, S, N, N]`` contiguous, gradients of the stored states, or None for zero.
    """
    results, launch = _results(dy, segments, chunk)
    with on_device(dy):
        segment_gradients_kernel[(_programs(results, launch),)](
            *(r, w, a, b, dy, d_states, segments.table, segments.is_first, results),
            *results.shape[1:3],
            HAS_BOUNDARIES=d_states is not None,
            **_constants(dy, launch),
        )
    return _scan(results, d_final_state, segments, reverse=True)


def _results(x: Tensor, segments: Segments, chunk: int) -> tuple[Tensor, Launch]:
    heads, size = x.shape[-2:]
    count = segments.table.shape[0]
    launch = segment_states_launch(x.dtype, size, chunk, count * heads, processors(x.device))
    return x.new_empty(2, count, heads, size, size, dtype=torch.float32), launch


def _programs(results: Tensor, launch: Launch) -> int:
    _, segments, heads, size, _ = results.shape
    return 2 * segments * heads * (size // launch.values)


def _constants(x: Tensor, launch: Launch) -> dict[str, object]:
    return {
        "SIZE": x.shape[-1],
        "VALUES": launch.values,
        "CHUNK": launch.chunk,
        "num_warps": launch.warps,
        "num_stages": launch.stages,
        **precision(x.dtype),
    }


def _scan(results: Tensor, outer: Tensor | None, segments: Segments, reverse: bool) -> Tensor:
    _, count, heads, size, _ = results.shape
    sequences = segments.ranges.shape[0]
    # Segments that are left over run too, on no tokens: from zero, or their states would be noise.
    entering = torch.zeros_like(results[0])
    launch = segment_scan_launch(size)
    with on_device(results):
        segment_scan_kernel[(sequences * heads * (size // launch.values),)](
            *(results, outer, segments.ranges, entering, count, heads),
            SIZE=size,
            VALUES=launch.values,
            HAS_OUTER=outer is not None,
            REVERSE=reverse,
            num_warps=launch.warps,
            num_stages=launch.stages,
        )
    return entering
