"""Second pass of the fused WKV-7 backward: every chunk's gradients, all chunks at once.

    r, w, k, v, a, b, dy  --+                        +--> dr, dw, dk, dv, da, db
    state at chunk start  --+--> [ A, T, U again ] --+
    dS' of the chunk      --+

The state before a chunk is what the forward scan kept, and dS', the gradient of the state after it,
what triton_state_gradients.py carried back, so that a chunk has nothing to wait for.

A_*, T and U are computed again for each chunk instead of being stored: six CHUNK x SIZE inputs are
read anyway, and what they give would be ten times the traffic. In the chunk's centred frame (see
triton_chunk.py):

    dU = A_qb^T dY + b^ dS'^T     dZ = T^T dU     dV = A_qk^T dY + k^ dS'^T + A_ak^T dZ
    dA_ab = tril_(dZ U^T)   dA_ak = tril_(dZ V^T)   dA_qb = tril(dY U^T)   dA_qk = tril(dY V^T)
    da^ = dA_ab b^ + dA_ak k^ + dZ S'         db^ = dA_ab^T a^ + dA_qb^T r^ + U dS'
    dr^ = dA_qb b^ + dA_qk k^ + dY S'         dk^ = dA_ak^T a^ + dA_qk^T r^ + V dS'

(tril_ is strict.) Every decay appears only through the frames, so the log decay's gradient needs no
further product: with g_i = (a da + r dr - b db - k dk)_i,

    dw_i = sum_{l >= i} g_l - (a da)_i + sum_j (b^ (U dS') + k^ (V dS'))_j + sum_value S' dS'.
"""
# mypy: disable-error-code="no-untyped-def"
# Triton traces these functions; its tensors have no useful static type.

import triton
import triton.language as tl

from wuneng.ops.wkv7.triton_chunk import (
    chunk_slots,
    decay_factors,
    load_CK,
    load_operands,
    lower_products,
    multiply,
    multiply_finely,
    sequence_extent,
    tile_offsets,
    unit_lower_inverse,
)


@triton.jit
def read_gradients(
    d_VC, u_VC, v_VC, state_VK, b_CK, k_CK,
    STRICT: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Return gradients of a^ from dZ (STRICT) or of r^ from dY, and of its products with b^, k^."""
    d_b_CC = lower_products(tl.trans(d_VC), tl.trans(u_VC), STRICT, OPERAND, PRECISION).to(OPERAND)
    d_k_CC = lower_products(tl.trans(d_VC), tl.trans(v_VC), STRICT, OPERAND, PRECISION).to(OPERAND)
    d_CK = multiply(tl.trans(d_VC), state_VK, OPERAND, PRECISION)
    d_CK += multiply(d_b_CC, b_CK, OPERAND, PRECISION)
    d_CK += multiply(d_k_CC, k_CK, OPERAND, PRECISION)
    return d_CK, d_b_CC, d_k_CC


@triton.jit
def chunk_of_row(table, row, sequences, tokens, rows, HAS_TABLE: tl.constexpr):
    """Return `(begin, end, lead, index)`: the sequence that a row of states belongs to, as
    :func:`sequence_extent`, and which of its chunks begins there (none, where that is past the
    last)."""
    if HAS_TABLE:
        begun = row * 0
        for first in range(0, sequences, 64):
            others = first + tl.arange(0, 64)
            mask = others < sequences
            first_rows = tl.load(table + others * 4 + 3, mask=mask, other=0)
            begun += tl.sum((mask & (first_rows <= row)).to(tl.int32), 0)
        sequence = begun - 1
    else:
        sequence = row // rows
    begin, end, lead, first_row = sequence_extent(table, sequence, tokens, rows, HAS_TABLE)
    return begin, end, lead, row - first_row


@triton.jit
def wkv7_backward_kernel(
    r, w, k, v, a, b,  # [tokens, heads, SIZE], any float type
    boundary_states,  # [rows, heads, SIZE, SIZE] (value, key), as the forward stored them
    chunk_gradients,  # the same shape: dS' of the chunk that begins at a row
    table,  # int64 [sequences, 4]: begin, end, lead, first row of boundary_states; or None
    dy,  # [tokens, heads, SIZE]
    dr, dw, dk, dv, da, db,  # as the inputs; but dr, dw, dk, da, db [blocks, ...] if BLOCKS > 1
    sequences,
    tokens,  # tokens per sequence and ...
    rows,  # ... rows of boundary_states per sequence, read where there is no table
    heads,
    block_stride,  # elements between two value blocks' parts of dr, dw, dk, da, db
    SIZE: tl.constexpr, VALUES: tl.constexpr, CHUNK: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, INVERSE_PRECISION: tl.constexpr,
    HAS_TABLE: tl.constexpr,
):  # fmt: skip
    """Write the gradients of wkv7_forward_kernel's inputs, a program per (row, head, block)."""
    BLOCKS: tl.constexpr = SIZE // VALUES
    program = tl.program_id(0)
    value_block = program % BLOCKS
    head = program // BLOCKS % heads
    row = (program // BLOCKS // heads).to(tl.int64)
    begin, end, lead, index = chunk_of_row(table, row, sequences, tokens, rows, HAS_TABLE)
    base = begin - lead + index * CHUNK
    if base < end:
        part = value_block.to(tl.int64) * block_stride
        tile_CK, tile_VC, state_VK_offsets = tile_offsets(value_block, heads, SIZE, VALUES, CHUNK)
        start, mask_C = chunk_slots(base, begin, end, head, heads, SIZE, CHUNK)
        mask_CK = mask_C[:, None]
        state = (row * heads + head) * SIZE * SIZE + state_VK_offsets

        r_CK, k_CK, a_CK, b_CK, v_VC, enter_K, _leave_K = load_operands(
            r, w, k, v, a, b, start, tile_CK, tile_VC, mask_C, CHUNK, OPERAND
        )
        dy_VC = tl.load(dy + start + tile_VC, mask=mask_C[None, :], other=0.0).to(OPERAND)
        state_VK = tl.load(boundary_states + state).to(tl.float32) * enter_K[None, :]
        ds_VK = tl.load(chunk_gradients + state)

        # The forward's intermediates again.
        ab_CC = lower_products(a_CK, b_CK, True, OPERAND, PRECISION)
        inverse_CC = unit_lower_inverse(ab_CC, CHUNK, INVERSE_PRECISION)
        ak_CC = lower_products(a_CK, k_CK, True, OPERAND, PRECISION).to(OPERAND)
        z_VC = multiply(state_VK, tl.trans(a_CK), OPERAND, PRECISION)
        z_VC += multiply(v_VC, tl.trans(ak_CC), OPERAND, PRECISION)
        u_VC = multiply_finely(z_VC, tl.trans(inverse_CC), OPERAND, PRECISION).to(OPERAND)

        decay_K = tl.sum(state_VK * ds_VK.to(tl.float32), 0)
        ds_VK = ds_VK.to(OPERAND)
        qb_CC = lower_products(r_CK, b_CK, False, OPERAND, PRECISION)
        du_VC = multiply(ds_VK, tl.trans(b_CK), OPERAND, PRECISION)
        du_VC += multiply(dy_VC, qb_CC, OPERAND, PRECISION)
        dz_VC = multiply_finely(du_VC, inverse_CC, OPERAND, PRECISION).to(OPERAND)

        qk_CC = lower_products(r_CK, k_CK, False, OPERAND, PRECISION)
        dv_VC = multiply(ds_VK, tl.trans(k_CK), OPERAND, PRECISION)
        dv_VC += multiply(dy_VC, qk_CC, OPERAND, PRECISION)
        dv_VC += multiply(dz_VC, ak_CC, OPERAND, PRECISION)
        tl.store(dv + start + tile_VC, dv_VC.to(dv.dtype.element_ty), mask=mask_C[None, :])

        # Registers are short from here on: decays are read and raised again instead of kept (half
        # the spills at CHUNK = 32), and each gradient is stored before the next one begins.
        out_CK = part + start + tile_CK
        log_decay_CK = load_CK(w + start, tile_CK, mask_CK)
        before_CK, after_CK, back_CK, _, _ = decay_factors(log_decay_CK, CHUNK)
        state_VK = state_VK.to(OPERAND)
        da_CK, dab_CC, dak_CC = read_gradients(
            dz_VC, u_VC, v_VC, state_VK, b_CK, k_CK, True, OPERAND, PRECISION
        )
        tl.store(da + out_CK, (da_CK * before_CK).to(da.dtype.element_ty), mask=mask_CK)
        at_own_CK = a_CK.to(tl.float32) * da_CK

        dr_CK, dqb_CC, dqk_CC = read_gradients(
            dy_VC, u_VC, v_VC, state_VK, b_CK, k_CK, False, OPERAND, PRECISION
        )
        tl.store(dr + out_CK, (dr_CK * after_CK).to(dr.dtype.element_ty), mask=mask_CK)
        flow_CK = at_own_CK + r_CK.to(tl.float32) * dr_CK

        db_CK = multiply(tl.trans(u_VC), ds_VK, OPERAND, PRECISION)
        decay_K += tl.sum(b_CK.to(tl.float32) * db_CK, 0)
        db_CK += multiply(tl.trans(dab_CC), a_CK, OPERAND, PRECISION)
        db_CK += multiply(tl.trans(dqb_CC), r_CK, OPERAND, PRECISION)
        tl.store(db + out_CK, (db_CK * back_CK).to(db.dtype.element_ty), mask=mask_CK)
        flow_CK -= b_CK.to(tl.float32) * db_CK

        dk_CK = multiply(tl.trans(v_VC), ds_VK, OPERAND, PRECISION)
        decay_K += tl.sum(k_CK.to(tl.float32) * dk_CK, 0)
        dk_CK += multiply(tl.trans(dak_CC), a_CK, OPERAND, PRECISION)
        dk_CK += multiply(tl.trans(dqk_CC), r_CK, OPERAND, PRECISION)
        tl.store(dk + out_CK, (dk_CK * back_CK).to(dk.dtype.element_ty), mask=mask_CK)
        flow_CK -= k_CK.to(tl.float32) * dk_CK

        dw_CK = tl.cumsum(flow_CK, 0, reverse=True) - at_own_CK + decay_K[None, :]
        tl.store(dw + out_CK, dw_CK.to(dw.dtype.element_ty), mask=mask_CK)
