"""Snapshot reads in Triton: every token reads n kept states beside the state now.

    y_t = gamma_{t,0} y_t + sum_j gamma_{t,1+j} r_t Snap_j^T

Tokens between two boundaries read the same snapshots: they form a *window* of ``every`` tokens,
which is cut into *tiles* of TILE tokens, aligned to absolute positions.

    snapshot_read_kernel             a program per (tile, head, value block): r is read once
    snapshot_gradients_kernel        a program per (tile, head): dr, d gamma, dy
    snapshot_state_gradients_kernel  a program per (kept state, head, value block): it goes through
                                     the n windows that read the state, so nothing is added by two

A snapshot of ``before`` tokens is one of the states that the forward kernel stored at its chunks'
starts, or, for a sequence that is continued, one of the ring that came in. The products in torch
that these kernels replace are in ``snapshot_products``. Letters in names: C tokens of a tile, K key
channels, V value channels.
"""
# mypy: disable-error-code="no-untyped-def"
# Triton traces these functions; its tensors have no useful static type.

import triton
import triton.language as tl

from wuneng.ops.wkv7.triton_chunk import load_CK, multiply


@triton.jit
def find_place(
    extents, places, place, tokens, rows, per_sequence, HAS_TABLE: tl.constexpr
):  # fmt: skip
    """Return `(sequence, index, begin, end, seen, first_row)` of a tile or a kept state.

    `index` counts within the sequence; -1 says that the place is not needed. Without tables,
    sequences have equal lengths and begin here.
    """
    if HAS_TABLE:
        sequence = tl.load(places + place * 2)
        index = tl.load(places + place * 2 + 1)
        begin = tl.load(extents + sequence * 4)
        end = tl.load(extents + sequence * 4 + 1)
        seen = tl.load(extents + sequence * 4 + 2)
        first_row = tl.load(extents + sequence * 4 + 3)
    else:
        sequence = (place // per_sequence).to(tl.int64)
        index = (place % per_sequence).to(tl.int64)
        begin = sequence * tokens
        end = begin + tokens
        seen = begin * 0
        first_row = sequence * rows
    return sequence, index, begin, end, seen, first_row


@triton.jit
def load_snapshot(
    states, ring, before, sequence, seen, first_row, head, heads, every, state_VK_offsets,
    CHUNK: tl.constexpr, SIZE: tl.constexpr, COUNT: tl.constexpr, HAS_RING: tl.constexpr,
):  # fmt: skip
    """Return the state after `before` tokens of the sequence as float32; zero if not positive."""
    stored = (first_row + before // CHUNK - seen // CHUNK) * heads + head
    pointers = states + stored * SIZE * SIZE + state_VK_offsets
    state_VK = tl.load(pointers, mask=before > seen, other=0.0).to(tl.float32)
    if HAS_RING:
        slot = seen // every - before // every
        carried = ((sequence * COUNT + slot) * heads + head) * SIZE * SIZE
        mask = (before > 0) & (before <= seen)
        state_VK += tl.load(ring + carried + state_VK_offsets, mask=mask, other=0.0)
    return state_VK


@triton.jit
def snapshot_read_kernel(
    r,  # [tokens, heads, SIZE]
    y,  # [tokens, heads, SIZE], the read of the state now
    weights,  # [tokens, heads, 1 + COUNT]
    states,  # [rows, heads, SIZE, SIZE] (value, key), as the forward kernel stores them
    ring,  # float32 [sequences, COUNT, heads, SIZE, SIZE] or None
    extents,  # int64 [sequences, 4]: begin, end, tokens seen before, first row of states; or None
    tiles,  # int64 [programs, 2]: sequence and tile in it; or None
    mixed,  # [tokens, heads, SIZE], written
    tokens,  # without tables: tokens, ...
    rows,  # ... rows of states and ...
    per_sequence,  # ... tiles of a sequence
    heads,
    every,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
    SIZE: tl.constexpr,
    VALUES: tl.constexpr,
    COUNT: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_RING: tl.constexpr,
    HAS_TABLE: tl.constexpr,
):  # fmt: skip
    """mixed = gamma_0 y + sum_j gamma_{1+j} (r Snap_j^T)."""
    BLOCKS: tl.constexpr = SIZE // VALUES
    program = tl.program_id(0)
    head = program // BLOCKS % heads
    sequence, index, begin, end, seen, first_row = find_place(
        extents, tiles, program // BLOCKS // heads, tokens, rows, per_sequence, HAS_TABLE
    )
    first = (seen // TILE + index) * TILE
    token = begin - seen + first + tl.arange(0, TILE)
    mask_C = (token >= begin) & (token < end) & (index >= 0)
    key = tl.arange(0, SIZE)
    value = program % BLOCKS * VALUES + tl.arange(0, VALUES)
    row_C = token * heads + head
    tile_CK = row_C[:, None] * SIZE + key[None, :]
    tile_CV = row_C[:, None] * SIZE + value[None, :]
    state_VK_offsets = value[:, None] * SIZE + key[None, :]

    r_CK = tl.load(r + tile_CK, mask=mask_C[:, None], other=0.0).to(OPERAND)
    weight_C = weights + row_C * (1 + COUNT)
    total_CV = load_CK(y, tile_CV, mask_C[:, None])
    total_CV = total_CV * tl.load(weight_C, mask=mask_C, other=0.0).to(tl.float32)[:, None]
    for newest in range(COUNT):
        before = tl.where(index >= 0, (first // every - newest) * every, 0)
        state_VK = load_snapshot(
            states, ring, before, sequence, seen, first_row, head, heads, every, state_VK_offsets,
            CHUNK, SIZE, COUNT, HAS_RING,
        )  # fmt: skip
        gamma_C = tl.load(weight_C + 1 + newest, mask=mask_C, other=0.0).to(tl.float32)
        total_CV += gamma_C[:, None] * multiply(r_CK, tl.trans(state_VK), OPERAND, PRECISION)
    tl.store(mixed + tile_CV, total_CV.to(mixed.dtype.element_ty), mask=mask_C[:, None])


@triton.jit
def snapshot_gradients_kernel(
    r, y, weights, states, ring, extents, tiles,  # as snapshot_read_kernel's
    d_mixed,  # [tokens, heads, SIZE]
    dr, dy, d_weights,  # like r, y and weights, written
    tokens, rows, per_sequence, heads, every,  # as snapshot_read_kernel's
    CHUNK: tl.constexpr, TILE: tl.constexpr, SIZE: tl.constexpr, VALUES: tl.constexpr,
    COUNT: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    HAS_RING: tl.constexpr,
    HAS_TABLE: tl.constexpr,
):  # fmt: skip
    """dy = gamma_0 d, d gamma_0 = d . y, dr = sum_j gamma_j d Snap_j, d gamma_j = r . d Snap_j."""
    program = tl.program_id(0)
    head = program % heads
    sequence, index, begin, end, seen, first_row = find_place(
        extents, tiles, program // heads, tokens, rows, per_sequence, HAS_TABLE
    )
    first = (seen // TILE + index) * TILE
    token = begin - seen + first + tl.arange(0, TILE)
    mask_C = (token >= begin) & (token < end) & (index >= 0)
    key = tl.arange(0, SIZE)
    row_C = token * heads + head
    tile_CK = row_C[:, None] * SIZE + key[None, :]
    gamma_C = row_C * (1 + COUNT)

    now_C = tl.load(weights + gamma_C, mask=mask_C, other=0.0).to(tl.float32)
    d_now_C = tl.zeros([TILE], dtype=tl.float32)
    for block in range(SIZE // VALUES):
        value = block * VALUES + tl.arange(0, VALUES)
        tile_CV = row_C[:, None] * SIZE + value[None, :]
        d_CV = load_CK(d_mixed, tile_CV, mask_C[:, None])
        d_now_C += tl.sum(d_CV * load_CK(y, tile_CV, mask_C[:, None]), 1)
        dy_CV = (d_CV * now_C[:, None]).to(dy.dtype.element_ty)
        tl.store(dy + tile_CV, dy_CV, mask=mask_C[:, None])
    tl.store(d_weights + gamma_C, d_now_C.to(d_weights.dtype.element_ty), mask=mask_C)

    r_CK = load_CK(r, tile_CK, mask_C[:, None])
    dr_CK = tl.zeros([TILE, SIZE], dtype=tl.float32)
    for newest in range(COUNT):
        before = tl.where(index >= 0, (first // every - newest) * every, 0)
        read_CK = tl.zeros([TILE, SIZE], dtype=tl.float32)
        for block in range(SIZE // VALUES):
            value = block * VALUES + tl.arange(0, VALUES)
            state_VK = load_snapshot(
                states, ring, before, sequence, seen, first_row, head, heads, every,
                value[:, None] * SIZE + key[None, :], CHUNK, SIZE, COUNT, HAS_RING,
            )  # fmt: skip
            tile_CV = row_C[:, None] * SIZE + value[None, :]
            d_CV = tl.load(d_mixed + tile_CV, mask=mask_C[:, None], other=0.0)
            read_CK += multiply(d_CV, state_VK, OPERAND, PRECISION)
        place_C = gamma_C + 1 + newest
        weight_C = tl.load(weights + place_C, mask=mask_C, other=0.0).to(tl.float32)
        dr_CK += weight_C[:, None] * read_CK
        d_weight_C = tl.sum(r_CK * read_CK, 1).to(d_weights.dtype.element_ty)
        tl.store(d_weights + place_C, d_weight_C, mask=mask_C)
    tl.store(dr + tile_CK, dr_CK.to(dr.dtype.element_ty), mask=mask_C[:, None])


@triton.jit
def snapshot_state_gradients_kernel(
    r, weights, extents,  # as snapshot_read_kernel's
    kept,  # int64 [programs, 2]: sequence and kept state in it; or None
    d_mixed,  # [tokens, heads, SIZE]
    d_ring_out,  # [sequences, COUNT, heads, SIZE, SIZE], gradient of the ring handed on, or None
    d_states,  # [rows, heads, SIZE, SIZE]; rows at boundaries that were crossed are written
    d_ring,  # float32 [sequences, COUNT, heads, SIZE, SIZE], written; or None
    tokens, rows,  # as snapshot_read_kernel's
    per_sequence,  # without tables: kept states of a sequence
    heads,
    every,
    CHUNK: tl.constexpr, TILE: tl.constexpr, SIZE: tl.constexpr, VALUES: tl.constexpr,
    COUNT: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    HAS_RING: tl.constexpr,
    HAS_D_RING_OUT: tl.constexpr,
    HAS_TABLE: tl.constexpr,
):  # fmt: skip
    """d Snap = sum over the tokens that read it of gamma_{1+j} d^T r, and what the ring brings.

    A sequence's kept states are counted from the oldest of its ring, if it has one.
    """
    BLOCKS: tl.constexpr = SIZE // VALUES
    program = tl.program_id(0)
    head = program // BLOCKS % heads
    sequence, index, begin, end, seen, first_row = find_place(
        extents, kept, program // BLOCKS // heads, tokens, rows, per_sequence, HAS_TABLE
    )
    key = tl.arange(0, SIZE)
    value = program % BLOCKS * VALUES + tl.arange(0, VALUES)
    state_VK_offsets = value[:, None] * SIZE + key[None, :]
    boundary = seen // every + 1 + index
    if HAS_RING:
        boundary -= COUNT
    before = boundary * every
    exists = (index >= 0) & (before > 0)

    # Its readers: tokens `before` to `before + COUNT * every` of the sequence, the earliest as
    # their newest snapshot.
    base = begin - seen + before
    first_tile = tl.maximum(begin - base, 0) // TILE
    last_tile = tl.cdiv(tl.maximum(tl.minimum(COUNT * every, end - base), 0), TILE)
    last_tile = tl.where(exists, last_tile, first_tile)
    d_state_VK = tl.zeros([VALUES, SIZE], dtype=tl.float32)
    for tile in range(first_tile, last_tile):
        token = base + tile * TILE + tl.arange(0, TILE)
        mask_C = (token >= begin) & (token < end)
        row_C = token * heads + head
        place_C = row_C * (1 + COUNT) + 1 + tile * TILE // every
        gamma_C = tl.load(weights + place_C, mask=mask_C, other=0.0).to(tl.float32)
        tile_CK = row_C[:, None] * SIZE + key[None, :]
        tile_CV = row_C[:, None] * SIZE + value[None, :]
        r_CK = tl.load(r + tile_CK, mask=mask_C[:, None], other=0.0)
        d_CV = load_CK(d_mixed, tile_CV, mask_C[:, None]) * gamma_C[:, None]
        d_state_VK += multiply(tl.trans(d_CV), r_CK, OPERAND, PRECISION)

    if HAS_D_RING_OUT:
        slot = (seen + end - begin) // every - boundary
        handed_on = ((sequence * COUNT + slot) * heads + head) * SIZE * SIZE
        pointers = d_ring_out + handed_on + state_VK_offsets
        mask = exists & (slot >= 0) & (slot < COUNT)
        d_state_VK += tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
    stored = (first_row + before // CHUNK - seen // CHUNK) * heads + head
    pointers = d_states + stored * SIZE * SIZE + state_VK_offsets
    tl.store(pointers, d_state_VK.to(d_states.dtype.element_ty), mask=exists & (before > seen))
    if HAS_RING:
        carried = ((sequence * COUNT + COUNT - 1 - index) * heads + head) * SIZE * SIZE
        mask = (index >= 0) & (before <= seen)
        tl.store(d_ring + carried + state_VK_offsets, d_state_VK, mask=mask)
