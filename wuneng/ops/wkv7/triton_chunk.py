"""The algebra inside one chunk, as Triton device functions that forward and backward share.

Letters in names give shapes: C tokens of the chunk, K key channels, V value channels.

Decays are taken relative to the middle of the chunk, so that no factor leaves float32 while
|log decay| * C / 2 < 88; with W_i the decay accumulated from the chunk's start to token i,

    a^_i = a_i W_{i-1} / W_mid     r^_i = r_i W_i / W_mid          (rows of the products below)
    b^_j = b_j W_mid / W_j         k^_j = k_j W_mid / W_j          (columns)

    A_ab[i, j] = a^_i . b^_j   (j < i)       A_ak[i, j] = a^_i . k^_j   (j < i)
    A_qb[i, j] = r^_i . b^_j   (j <= i)      A_qk[i, j] = r^_i . k^_j   (j <= i)

The state is moved into the same frame (S' = S_0 diag(W_mid)) instead of the operands into the
state's, so each operand is rounded once and serves every product it appears in.
"""
# mypy: disable-error-code="no-untyped-def"
# Triton traces these functions; its tensors have no useful static type.

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def multiply(x, y, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """Return `x @ y` in float32, operands rounded to OPERAND; PRECISION is for float32 operands."""
    return tl.dot(x.to(OPERAND), y.to(OPERAND), input_precision=PRECISION)


@triton.jit
def multiply_finely(x, y, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """Return `x @ y` in float32, where rounding float32 operands to OPERAND would be felt.

    What goes through the triangular inverse cancels on runs of equal tokens: in one pass with
    bfloat16 operands the gradient of their keys was off by 5 %. Each operand is split in a rounded
    part and the rest, rounded too, and the product of the two rests is left out: twice the bits,
    on the same registers as :func:`multiply`.
    """
    if OPERAND == tl.float32:  # noqa: SIM300
        return multiply(x, y, OPERAND, PRECISION)
    else:
        x_high, y_high = x.to(OPERAND), y.to(OPERAND)
        x_rest = (x - x_high.to(tl.float32)).to(OPERAND)
        y_rest = (y - y_high.to(tl.float32)).to(OPERAND)
        return tl.dot(x_high, y_high, tl.dot(x_rest, y_high, tl.dot(x_high, y_rest)))


@triton.jit
def load_CK(pointers, offsets_CK, mask_CK):
    """Load a tile as float32; what the mask leaves out is 0, which leaves the state unchanged."""
    return tl.load(pointers + offsets_CK, mask=mask_CK, other=0.0).to(tl.float32)


@triton.jit
def decay_factors(log_decay_CK, CHUNK: tl.constexpr):
    """Return the factors that move between a token's frame and the chunk's middle.

    `(before_CK, after_CK, back_CK, enter_K, leave_K)`: W_{i-1} / W_mid, W_i / W_mid, W_mid / W_j,
    W_mid, and W_C / W_mid.
    """
    token = tl.arange(0, CHUNK)
    step_CK = log_decay_CK * LOG2E
    total_CK = tl.cumsum(step_CK, 0)
    middle_K = tl.sum(tl.where((token == CHUNK // 2 - 1)[:, None], total_CK, 0.0), 0)
    last_K = tl.sum(tl.where((token == CHUNK - 1)[:, None], total_CK, 0.0), 0)
    centred_CK = total_CK - middle_K[None, :]
    return (
        tl.exp2(centred_CK - step_CK),
        tl.exp2(centred_CK),
        tl.exp2(-centred_CK),
        tl.exp2(middle_K),
        tl.exp2(last_K - middle_K),
    )


@triton.jit
def load_operands(
    r, w, k, v, a, b, start, tile_CK, tile_VC, mask_C, CHUNK: tl.constexpr, OPERAND: tl.constexpr
):  # fmt: skip
    """Return `(r_CK, k_CK, a_CK, b_CK, v_VC, enter_K, leave_K)` of a chunk, rounded to OPERAND.

    All but v in the chunk's frame; the factors are :func:`decay_factors`'.
    """
    mask_CK = mask_C[:, None]
    log_decay_CK = load_CK(w + start, tile_CK, mask_CK)
    before_CK, after_CK, back_CK, enter_K, leave_K = decay_factors(log_decay_CK, CHUNK)
    a_CK = (load_CK(a + start, tile_CK, mask_CK) * before_CK).to(OPERAND)
    b_CK = (load_CK(b + start, tile_CK, mask_CK) * back_CK).to(OPERAND)
    k_CK = (load_CK(k + start, tile_CK, mask_CK) * back_CK).to(OPERAND)
    r_CK = (load_CK(r + start, tile_CK, mask_CK) * after_CK).to(OPERAND)
    v_VC = tl.load(v + start + tile_VC, mask=mask_C[None, :], other=0.0).to(OPERAND)
    return r_CK, k_CK, a_CK, b_CK, v_VC, enter_K, leave_K


@triton.jit
def double_blocks(inverse_CC, strict_CC, row, column, SIZE: tl.constexpr, PRECISION: tl.constexpr):
    """Grow inverses of SIZE-blocks on the diagonal to 2*SIZE: T <- T + T (A o M) T.

    M picks the lower left quarter of every 2*SIZE block, so only finished inverses and entries of
    A itself are multiplied. No power of A is ever formed: on repeated tokens those reach 1e17.
    """
    quarter_CC = (
        (row // (2 * SIZE) == column // (2 * SIZE))
        & ((row // SIZE) % 2 == 1)
        & ((column // SIZE) % 2 == 0)
    )
    chosen_CC = tl.where(quarter_CC, strict_CC, 0.0)
    if PRECISION == "split":
        right_CC = multiply_finely(chosen_CC, inverse_CC, tl.bfloat16, PRECISION)
        return inverse_CC + multiply_finely(inverse_CC, right_CC, tl.bfloat16, PRECISION)
    else:
        right_CC = multiply(chosen_CC, inverse_CC, tl.float32, PRECISION)
        return inverse_CC + multiply(inverse_CC, right_CC, tl.float32, PRECISION)


@triton.jit
def unit_lower_inverse(strict_CC, CHUNK: tl.constexpr, PRECISION: tl.constexpr):
    """Return (I - A)^{-1} for strictly lower triangular A, by masked block doubling."""
    row = tl.arange(0, CHUNK)[:, None]
    column = tl.arange(0, CHUNK)[None, :]
    # A pair's inverse is the identity plus its one entry below the diagonal.
    pair_CC = (row // 2 == column // 2) & (row > column)
    inverse_CC = tl.where(row == column, 1.0, tl.where(pair_CC, strict_CC, 0.0))
    inverse_CC = double_blocks(inverse_CC, strict_CC, row, column, 2, PRECISION)
    inverse_CC = double_blocks(inverse_CC, strict_CC, row, column, 4, PRECISION)
    inverse_CC = double_blocks(inverse_CC, strict_CC, row, column, 8, PRECISION)
    if CHUNK > 16:
        inverse_CC = double_blocks(inverse_CC, strict_CC, row, column, 16, PRECISION)
    if CHUNK > 32:
        inverse_CC = double_blocks(inverse_CC, strict_CC, row, column, 32, PRECISION)
    return inverse_CC


@triton.jit
def lower_products(
    left_CK, right_CK, STRICT: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr
):
    """Return `left @ right^T` below the diagonal (on it too unless STRICT), else 0, in float32."""
    CHUNK: tl.constexpr = left_CK.shape[0]
    row = tl.arange(0, CHUNK)[:, None]
    column = tl.arange(0, CHUNK)[None, :]
    product_CC = multiply(left_CK, tl.trans(right_CK), OPERAND, PRECISION)
    if STRICT:
        return tl.where(row > column, product_CC, 0.0)
    else:
        return tl.where(row >= column, product_CC, 0.0)


@triton.jit
def sequence_extent(table, sequence, tokens, rows, HAS_TABLE: tl.constexpr):
    """Return `(begin, end, lead, first_row)` of one sequence, in tokens and rows of states.

    `lead` slots of the sequence's first chunk stay empty, so that chunk boundaries fall on
    multiples of the chunk length in the absolute position. Without a table, sequences have equal
    lengths.
    """
    if HAS_TABLE:
        begin = tl.load(table + sequence * 4)
        end = tl.load(table + sequence * 4 + 1)
        lead = tl.load(table + sequence * 4 + 2)
        first_row = tl.load(table + sequence * 4 + 3)
    else:
        begin = sequence.to(tl.int64) * tokens
        end = begin + tokens
        lead = begin * 0
        first_row = sequence.to(tl.int64) * rows
    return begin, end, lead, first_row


@triton.jit
def scan_program(
    table, tokens, rows, heads, HAS_TABLE: tl.constexpr, SIZE: tl.constexpr, BLOCKS: tl.constexpr
):
    """Return `(value_block, sequence, head, state)` of this program, and its sequence's extent.

    `state` is where a [SIZE, SIZE] of this sequence and head begins; the extent is that of
    :func:`sequence_extent`.
    """
    program = tl.program_id(0)
    value_block = program % BLOCKS
    sequence = program // BLOCKS // heads
    head = program // BLOCKS % heads
    begin, end, lead, first_row = sequence_extent(table, sequence, tokens, rows, HAS_TABLE)
    state = (sequence.to(tl.int64) * heads + head) * SIZE * SIZE
    return value_block, sequence, head, state, begin, end, lead, first_row


@triton.jit
def tile_offsets(value_block, heads, SIZE: tl.constexpr, VALUES: tl.constexpr, CHUNK: tl.constexpr):
    """Return `(tile_CK, tile_VC, state_VK)`: offsets in tensors of tokens and in a state."""
    token = tl.arange(0, CHUNK)
    key = tl.arange(0, SIZE)
    value = value_block * VALUES + tl.arange(0, VALUES)
    row = heads * SIZE
    tile_CK = token[:, None] * row + key[None, :]
    tile_VC = token[None, :] * row + value[:, None]
    return tile_CK, tile_VC, value[:, None] * SIZE + key[None, :]


@triton.jit
def chunk_slots(base, begin, end, head, heads, SIZE: tl.constexpr, CHUNK: tl.constexpr):
    """Return where the chunk of CHUNK slots from token `base` begins in a head's tensors, and the
    mask of the slots that hold a token."""
    token = base + tl.arange(0, CHUNK)
    return base * (heads * SIZE) + head * SIZE, (token >= begin) & (token < end)


@triton.jit
def load_state(pointer, offsets_VK, HAS_STATE: tl.constexpr):
    """Return a state, or a state's gradient, as float32; zero where there is none."""
    if HAS_STATE:
        return tl.load(pointer + offsets_VK).to(tl.float32)
    else:
        return tl.zeros(offsets_VK.shape, dtype=tl.float32)


@triton.jit
def removed_values(
    state_VK, enter_K, a_CK, b_CK, k_CK, v_VC,
    CHUNK: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    INVERSE_PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the state in the chunk's frame and U, which goes back on b: U = T (A_ak V + a^ S')."""
    ab_CC = lower_products(a_CK, b_CK, True, OPERAND, PRECISION)
    ak_CC = lower_products(a_CK, k_CK, True, OPERAND, PRECISION)
    inverse_CC = unit_lower_inverse(ab_CC, CHUNK, INVERSE_PRECISION)
    state_VK = state_VK * enter_K[None, :]
    z_VC = multiply(state_VK, tl.trans(a_CK), OPERAND, PRECISION)
    z_VC += multiply(v_VC, tl.trans(ak_CC), OPERAND, PRECISION)
    u_VC = multiply_finely(z_VC, tl.trans(inverse_CC), OPERAND, PRECISION)
    return state_VK, u_VC.to(OPERAND)


@triton.jit
def after_chunk(
    state_VK, u_VC, v_VC, b_CK, k_CK, leave_K, OPERAND: tl.constexpr, PRECISION: tl.constexpr
):
    """Return the state after the chunk, in its own frame."""
    state_VK += multiply(u_VC, b_CK, OPERAND, PRECISION)
    state_VK += multiply(v_VC, k_CK, OPERAND, PRECISION)
    return state_VK * leave_K[None, :]


@triton.jit
def gradient_before_chunk(
    ds_VK, dy_VC, r_CK, a_CK, b_CK, inverse_CC, qb_CC, enter_K,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the gradient of the state before the chunk from dS', that after it in its frame."""
    du_VC = multiply(ds_VK, tl.trans(b_CK), OPERAND, PRECISION)
    du_VC += multiply(dy_VC, qb_CC, OPERAND, PRECISION)
    dz_VC = multiply_finely(du_VC, inverse_CC, OPERAND, PRECISION).to(OPERAND)
    ds_VK += multiply(dy_VC, r_CK, OPERAND, PRECISION)
    ds_VK += multiply(dz_VC, a_CK, OPERAND, PRECISION)
    return ds_VK * enter_K[None, :]
