"""Fused WKV-7 forward: one program walks one head of one sequence, its state in registers.

    r, w, k, v, a, b  --read once-->  [ chunk algebra | state_VK in registers ]  --> y
                                                  |
                                                  +--> states at chunk starts (training only)

Nothing else is stored: decays, A_*, T and U live and die inside a chunk. The state is kept
[value, key] and the products are arranged so that every step of the serial chain
state -> Z^T -> U^T -> state has value channels as its rows; value rows are independent, so a warp
keeps its rows from one product to the next, and a program may take only a block of them
(VALUES < head size) when there are few heads.
"""
# mypy: disable-error-code="no-untyped-def"
# Triton traces these functions; its tensors have no useful static type.

import triton
import triton.language as tl

from wuneng.ops.wkv7.triton_chunk import (
    after_chunk,
    chunk_slots,
    load_operands,
    load_state,
    lower_products,
    multiply,
    removed_values,
    scan_program,
    tile_offsets,
)


@triton.jit
def wkv7_forward_kernel(
    r, w, k, v, a, b,  # [tokens, heads, SIZE], any float type
    initial_state,  # [sequences, heads, SIZE, SIZE] (value, key) or None
    table,  # int64 [sequences, 4]: begin, end, lead, first row of boundary_states; or None
    y,  # [tokens, heads, SIZE]
    final_state,  # float32 [sequences, heads, SIZE, SIZE]
    boundary_states,  # [rows, heads, SIZE, SIZE]: at every chunk's start and at the end; or None
    tokens,  # tokens per sequence and ...
    rows,  # ... rows of boundary_states per sequence, read where there is no table
    heads,
    SIZE: tl.constexpr,
    VALUES: tl.constexpr,
    CHUNK: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    INVERSE_PRECISION: tl.constexpr,
    HAS_INITIAL: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    STORE_BOUNDARIES: tl.constexpr,
):  # fmt: skip
    """y_t = S_t r_t, S_t = S_{t-1} (diag(e^{w_t}) + a_t^T b_t) + v_t^T k_t, a chunk at a time."""
    value_block, _sequence, head, state, begin, end, lead, first_row = scan_program(
        table, tokens, rows, heads, HAS_TABLE, SIZE, SIZE // VALUES
    )
    tile_CK, tile_VC, state_VK_offsets = tile_offsets(value_block, heads, SIZE, VALUES, CHUNK)
    state_VK = load_state(initial_state, state + state_VK_offsets, HAS_INITIAL)

    # `base` is the (possibly imaginary) token in slot 0 of the chunk.
    base = begin - lead
    for index in range(tl.cdiv(end - base, CHUNK)):
        if STORE_BOUNDARIES:
            boundary = ((first_row + index) * heads + head) * SIZE * SIZE
            tl.store(
                boundary_states + boundary + state_VK_offsets,
                state_VK.to(boundary_states.dtype.element_ty),
            )
        start, mask_C = chunk_slots(base, begin, end, head, heads, SIZE, CHUNK)
        r_CK, k_CK, a_CK, b_CK, v_VC, enter_K, leave_K = load_operands(
            r, w, k, v, a, b, start, tile_CK, tile_VC, mask_C, CHUNK, OPERAND
        )
        state_VK, u_VC = removed_values(
            state_VK, enter_K, a_CK, b_CK, k_CK, v_VC, CHUNK, OPERAND, PRECISION, INVERSE_PRECISION
        )

        qb_CC = lower_products(r_CK, b_CK, False, OPERAND, PRECISION)
        qk_CC = lower_products(r_CK, k_CK, False, OPERAND, PRECISION)
        y_VC = multiply(state_VK, tl.trans(r_CK), OPERAND, PRECISION)
        y_VC += multiply(u_VC, tl.trans(qb_CC), OPERAND, PRECISION)
        y_VC += multiply(v_VC, tl.trans(qk_CC), OPERAND, PRECISION)
        tl.store(y + start + tile_VC, y_VC.to(y.dtype.element_ty), mask=mask_C[None, :])

        state_VK = after_chunk(state_VK, u_VC, v_VC, b_CK, k_CK, leave_K, OPERAND, PRECISION)
        base += CHUNK

    tl.store(final_state + state + state_VK_offsets, state_VK)
    if STORE_BOUNDARIES:
        boundary = ((first_row + tl.cdiv(end - begin + lead, CHUNK)) * heads + head) * SIZE * SIZE
        tl.store(
            boundary_states + boundary + state_VK_offsets,
            state_VK.to(boundary_states.dtype.element_ty),
        )
