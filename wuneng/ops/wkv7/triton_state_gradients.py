"""First pass of the fused WKV-7 backward: the state's gradient, carried back over a head's chunks.

    r, w, a, b, dy  -->  [ A_ab, A_qb, T again ]
                         [ dS in registers     ]  --> dS' of every chunk
                                                  --> dS of the initial state

Only this is serial. With dS the gradient of the state after the chunk, in the chunk's centred frame
(see triton_chunk.py):

    dS' = dS diag(W_C / W_mid)     dU = A_qb^T dY + b^ dS'^T     dZ = T^T dU
    dS_0 = (dS' + dY^T r^ + dZ^T a^) diag(W_mid)

It has value channels as its rows throughout, as the forward scan, and so as few warps. What every
chunk's dS' is kept for is triton_backward.py.
"""
# mypy: disable-error-code="no-untyped-def"
# Triton traces these functions; its tensors have no useful static type.

import triton
import triton.language as tl

from wuneng.ops.wkv7.triton_chunk import (
    chunk_slots,
    gradient_before_chunk,
    load_operands,
    load_state,
    lower_products,
    scan_program,
    tile_offsets,
    unit_lower_inverse,
)


@triton.jit
def wkv7_state_gradients_kernel(
    r, w, k, v, a, b,  # [tokens, heads, SIZE], any float type
    table,  # int64 [sequences, 4]: begin, end, lead, first row of the states; or None
    dy,  # [tokens, heads, SIZE]
    d_final_state,  # [sequences, heads, SIZE, SIZE] or None
    d_boundary_states,  # [rows, heads, SIZE, SIZE] or None: gradients of the stored states
    chunk_gradients,  # [rows, heads, SIZE, SIZE]: dS' of the chunk that begins at a row
    d_initial_state,  # float32 [sequences, heads, SIZE, SIZE]
    tokens,  # tokens per sequence and ...
    rows,  # ... rows of states per sequence, read where there is no table
    heads,
    SIZE: tl.constexpr, VALUES: tl.constexpr, CHUNK: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, INVERSE_PRECISION: tl.constexpr,
    HAS_FINAL: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    HAS_BOUNDARIES: tl.constexpr,
):  # fmt: skip
    """Write dS' of every chunk; what is not given counts as zero."""
    value_block, _sequence, head, state, begin, end, lead, first_row = scan_program(
        table, tokens, rows, heads, HAS_TABLE, SIZE, SIZE // VALUES
    )
    tile_CK, tile_VC, state_VK_offsets = tile_offsets(value_block, heads, SIZE, VALUES, CHUNK)
    ds_VK = load_state(d_final_state, state + state_VK_offsets, HAS_FINAL)

    count = tl.cdiv(end - begin + lead, CHUNK)
    if HAS_BOUNDARIES:
        boundary = ((first_row + count) * heads + head) * SIZE * SIZE
        ds_VK += tl.load(d_boundary_states + boundary + state_VK_offsets).to(tl.float32)
    for step in range(count):
        index = count - 1 - step
        base = begin - lead + index * CHUNK
        start, mask_C = chunk_slots(base, begin, end, head, heads, SIZE, CHUNK)
        boundary = ((first_row + index) * heads + head) * SIZE * SIZE
        r_CK, _k_CK, a_CK, b_CK, _v_VC, enter_K, leave_K = load_operands(
            r, w, k, v, a, b, start, tile_CK, tile_VC, mask_C, CHUNK, OPERAND
        )
        dy_VC = tl.load(dy + start + tile_VC, mask=mask_C[None, :], other=0.0).to(OPERAND)
        ab_CC = lower_products(a_CK, b_CK, True, OPERAND, PRECISION)
        inverse_CC = unit_lower_inverse(ab_CC, CHUNK, INVERSE_PRECISION)
        qb_CC = lower_products(r_CK, b_CK, False, OPERAND, PRECISION)

        ds_VK = ds_VK * leave_K[None, :]
        tl.store(
            chunk_gradients + boundary + state_VK_offsets,
            ds_VK.to(chunk_gradients.dtype.element_ty),
        )
        ds_VK = gradient_before_chunk(
            ds_VK, dy_VC, r_CK, a_CK, b_CK, inverse_CC, qb_CC, enter_K, OPERAND, PRECISION
        )
        if HAS_BOUNDARIES:
            ds_VK += tl.load(d_boundary_states + boundary + state_VK_offsets).to(tl.float32)

    tl.store(d_initial_state + state + state_VK_offsets, ds_VK)
