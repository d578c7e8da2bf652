"""Fused WKV-7 forward: one program walks one head of one sequence, its state in registers.

    r, w, k, v, a, b  --read once-->  [ chunk algebra | state_VK in registers ]  --> y
                                                  |
                                                  +--> states at chunk starts (training only)

Nothing else is stored: decays, A_*, T and U live and die inside a chunk. The state is kept
[value, key] and the products are arranged so that every step of the serial chain
state -> Z^T -> U^T -> state has value channels as its rows; value rows are independent, so a warp
keeps its rows from one product to the next, and a program may take only a block of them
(VALUES < head size) when there are few heads.

With RAW the kernel reads the layer's projections instead and makes w, k~, a and b of them in
registers (``triton_recurrence_inputs``); it then also writes k~, which the layer's bonus reads.
"""
# mypy: disable-error-code="no-untyped-def"
# Triton traces these functions; its tensors have no useful static type.

import triton
import triton.language as tl

from wuneng.ops.wkv7.triton_chunk import (
    decay_factors,
    load_CK,
    lower_products,
    multiply,
    sequence_extent,
    unit_lower_inverse,
)
from wuneng.ops.wkv7.triton_recurrence_inputs import load_inputs, log_decay_of


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
    k_k=None,  # [heads, SIZE], with RAW
    k_a=None,  # [heads, SIZE], with RAW
    replacement_key=None,  # [tokens, heads, SIZE], with RAW: k~, written
    RAW: tl.constexpr = False,  # w is the decay's logit, k untouched, b the rate's logit and ...
    SHARED: tl.constexpr = False,  # ... a what the removal key is made of; None if SHARED: k
    A_MAX: tl.constexpr = 1.0,
):  # fmt: skip
    """y_t = S_t r_t, S_t = S_{t-1} (diag(e^{w_t}) + a_t^T b_t) + v_t^T k_t, a chunk at a time."""
    BLOCKS: tl.constexpr = SIZE // VALUES
    program = tl.program_id(0)
    value_block = program % BLOCKS
    sequence = program // BLOCKS // heads
    head = program // BLOCKS % heads
    begin, end, lead, first_row = sequence_extent(table, sequence, tokens, rows, HAS_TABLE)

    token = tl.arange(0, CHUNK)
    key = tl.arange(0, SIZE)
    value = value_block * VALUES + tl.arange(0, VALUES)
    row = heads * SIZE
    state_VK_offsets = value[:, None] * SIZE + key[None, :]
    state_base = (sequence.to(tl.int64) * heads + head) * SIZE * SIZE

    if HAS_INITIAL:
        state_VK = tl.load(initial_state + state_base + state_VK_offsets).to(tl.float32)
    else:
        state_VK = tl.zeros([VALUES, SIZE], dtype=tl.float32)

    # `base` is the (possibly imaginary) token in slot 0 of the chunk.
    base = begin - lead
    for index in range(tl.cdiv(end - base, CHUNK)):
        if STORE_BOUNDARIES:
            boundary = ((first_row + index) * heads + head) * SIZE * SIZE
            tl.store(
                boundary_states + boundary + state_VK_offsets,
                state_VK.to(boundary_states.dtype.element_ty),
            )
        start = base * row + head * SIZE
        mask_C = (base + token >= begin) & (base + token < end)
        tile_CK = token[:, None] * row + key[None, :]
        log_decay_CK = load_CK(w + start, tile_CK, mask_C[:, None])
        if RAW:
            log_decay_CK = log_decay_of(log_decay_CK, mask_C[:, None])
        before_CK, after_CK, back_CK, enter_K, leave_K = decay_factors(log_decay_CK, CHUNK)
        if RAW:
            kappa_CK, rate_CK, key_CK = load_inputs(
                k, a, b, k_k, k_a, head, start, tile_CK, mask_C[:, None], SHARED
            )
            tl.store(
                replacement_key + start + tile_CK,
                key_CK.to(replacement_key.dtype.element_ty),
                mask=mask_C[:, None] & (value_block == 0),
            )
            a_CK = (-kappa_CK * before_CK).to(OPERAND)
            b_CK = (A_MAX * rate_CK * kappa_CK * back_CK).to(OPERAND)
            k_CK = (key_CK * back_CK).to(OPERAND)
        else:
            a_CK = (load_CK(a + start, tile_CK, mask_C[:, None]) * before_CK).to(OPERAND)
            b_CK = (load_CK(b + start, tile_CK, mask_C[:, None]) * back_CK).to(OPERAND)
            k_CK = (load_CK(k + start, tile_CK, mask_C[:, None]) * back_CK).to(OPERAND)
        r_CK = (load_CK(r + start, tile_CK, mask_C[:, None]) * after_CK).to(OPERAND)
        tile_VC = token[None, :] * row + value[:, None]
        v_VC = tl.load(v + start + tile_VC, mask=mask_C[None, :], other=0.0).to(OPERAND)

        ab_CC = lower_products(a_CK, b_CK, True, OPERAND, PRECISION)
        ak_CC = lower_products(a_CK, k_CK, True, OPERAND, PRECISION)
        inverse_CC = unit_lower_inverse(ab_CC, CHUNK, INVERSE_PRECISION)

        state_VK = state_VK * enter_K[None, :]
        z_VC = multiply(state_VK, tl.trans(a_CK), OPERAND, PRECISION)
        z_VC += multiply(v_VC, tl.trans(ak_CC), OPERAND, PRECISION)
        u_VC = multiply(z_VC, tl.trans(inverse_CC), OPERAND, PRECISION).to(OPERAND)

        qb_CC = lower_products(r_CK, b_CK, False, OPERAND, PRECISION)
        qk_CC = lower_products(r_CK, k_CK, False, OPERAND, PRECISION)
        y_VC = multiply(state_VK, tl.trans(r_CK), OPERAND, PRECISION)
        y_VC += multiply(u_VC, tl.trans(qb_CC), OPERAND, PRECISION)
        y_VC += multiply(v_VC, tl.trans(qk_CC), OPERAND, PRECISION)
        tl.store(y + start + tile_VC, y_VC.to(y.dtype.element_ty), mask=mask_C[None, :])

        state_VK += multiply(u_VC, b_CK, OPERAND, PRECISION)
        state_VK += multiply(v_VC, k_CK, OPERAND, PRECISION)
        state_VK = state_VK * leave_K[None, :]
        base += CHUNK

    tl.store(final_state + state_base + state_VK_offsets, state_VK)
    if STORE_BOUNDARIES:
        boundary = ((first_row + tl.cdiv(end - begin + lead, CHUNK)) * heads + head) * SIZE * SIZE
        tl.store(
            boundary_states + boundary + state_VK_offsets,
            state_VK.to(boundary_states.dtype.element_ty),
        )
