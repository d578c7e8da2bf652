"""Between a layer's projections and what the recurrence reads: one kernel there, one back.

    log w = -e^{-1/2} sigma(decay logit)        rate = sigma(rate logit)
    kappa = normalise_head(source * k_k)        a = -kappa        b = a_max * rate * kappa
    k~    = k * (1 + (rate - 1) * k_a)

Both are bound by memory: each projection and each gradient is read once, each result written once,
and nothing is kept for the way back but the projections. Made in registers inside the scans instead
(an earlier design), this saved those bytes and cost more than them: a scan is bound by its chain of
products, which everything else in the program delays (docs/kernels.md has the times).

A program of the way back walks over a range of rows of one head and leaves a partial sum per
channel for each weight, which torch adds in their order: the same bits on every run.

Legend: M rows (B T), S heads, N head size, R a tile's rows.
"""
# mypy: disable-error-code="no-untyped-def"
# Triton traces these functions; its tensors have no useful static type.

import triton
import triton.language as tl

from wuneng.ops.state_head.recurrence_inputs import LOG_DECAY_SCALE, NORM_EPS

SCALE = tl.constexpr(LOG_DECAY_SCALE)
EPS = tl.constexpr(NORM_EPS)


@triton.jit
def _load(pointer, at_RN, inside):
    return tl.load(pointer + at_RN, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _removal_key(source_RN, k_k_N):
    """Return kappa and the reciprocal norm [R, 1] it was normalised with."""
    scaled_RN = source_RN * k_k_N[None, :]
    norm_R = tl.maximum(tl.sqrt(tl.sum(scaled_RN * scaled_RN, 1)), EPS)
    inverse_R = (1.0 / norm_R)[:, None]
    return scaled_RN * inverse_R, inverse_R


@triton.jit
def recurrence_inputs_kernel(
    decay_logit, k, source, rate_logit,  # [M, S, SIZE]; source None if SHARED: it is k
    k_k, k_a,  # [S, SIZE]
    w,  # float32 [M, S, SIZE]
    key, a, b,  # [M, S, SIZE]
    rows, heads,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    SHARED: tl.constexpr,
    A_MAX: tl.constexpr,
):  # fmt: skip
    """Write the log decay, k~, a and b of a tile of one head's rows."""
    head = tl.program_id(0) % heads
    row_R = tl.program_id(0) // heads * ROWS + tl.arange(0, ROWS)
    channel_N = head * SIZE + tl.arange(0, SIZE)
    inside = (row_R < rows)[:, None]
    at_RN = row_R[:, None].to(tl.int64) * (heads * SIZE) + channel_N[None, :]
    log_decay_RN = SCALE * tl.sigmoid(_load(decay_logit, at_RN, inside))
    tl.store(w + at_RN, log_decay_RN, mask=inside)
    k_RN = _load(k, at_RN, inside)
    if SHARED:
        source_RN = k_RN
    else:
        source_RN = _load(source, at_RN, inside)
    kappa_RN, _ = _removal_key(source_RN, tl.load(k_k + channel_N).to(tl.float32))
    rate_RN = tl.sigmoid(_load(rate_logit, at_RN, inside))
    k_a_N = tl.load(k_a + channel_N).to(tl.float32)
    key_RN = k_RN * (1.0 + (rate_RN - 1.0) * k_a_N[None, :])
    tl.store(key + at_RN, key_RN.to(key.dtype.element_ty), mask=inside)
    tl.store(a + at_RN, (-kappa_RN).to(a.dtype.element_ty), mask=inside)
    tl.store(b + at_RN, (A_MAX * rate_RN * kappa_RN).to(b.dtype.element_ty), mask=inside)


@triton.jit
def projection_gradients_kernel(
    decay_logit, k, source, rate_logit,  # as above
    k_k, k_a,
    dw, d_key, da, db,  # [M, S, SIZE]: of the recurrence's inputs
    d_key_read,  # [M, S, SIZE] or None: what reached k~ from elsewhere
    d_decay, dk, d_source, d_rate,  # [M, S, SIZE]; d_source None if SHARED: dk holds both
    d_weights,  # float32 [programs of a head, 2, S, SIZE]: of k_k and k_a
    rows, heads, tiles,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    SHARED: tl.constexpr,
    HAS_KEY_READ: tl.constexpr,
    A_MAX: tl.constexpr,
):  # fmt: skip
    """Write the projections' gradients over ``tiles`` tiles of one head's rows.

    `d kappa = a_max rate db - da`, then through the normalisation: what is orthogonal to kappa,
    over the norm.
    """
    head = tl.program_id(0) % heads
    program = tl.program_id(0) // heads
    channel_N = head * SIZE + tl.arange(0, SIZE)
    k_k_N = tl.load(k_k + channel_N).to(tl.float32)
    k_a_N = tl.load(k_a + channel_N).to(tl.float32)
    d_k_k_RN = tl.zeros((ROWS, SIZE), tl.float32)
    d_k_a_RN = tl.zeros((ROWS, SIZE), tl.float32)
    for tile in range(tiles):
        row_R = (program * tiles + tile) * ROWS + tl.arange(0, ROWS)
        inside = (row_R < rows)[:, None]
        at_RN = row_R[:, None].to(tl.int64) * (heads * SIZE) + channel_N[None, :]
        kept_RN = tl.sigmoid(_load(decay_logit, at_RN, inside))
        d_decay_RN = _load(dw, at_RN, inside) * (SCALE * kept_RN * (1.0 - kept_RN))
        tl.store(d_decay + at_RN, d_decay_RN.to(d_decay.dtype.element_ty), mask=inside)

        k_RN = _load(k, at_RN, inside)
        if SHARED:
            source_RN = k_RN
        else:
            source_RN = _load(source, at_RN, inside)
        kappa_RN, inverse_R = _removal_key(source_RN, k_k_N)
        rate_RN = tl.sigmoid(_load(rate_logit, at_RN, inside))
        through_b_RN = A_MAX * _load(db, at_RN, inside)
        d_kappa_RN = through_b_RN * rate_RN - _load(da, at_RN, inside)
        along_R = tl.sum(d_kappa_RN * kappa_RN, 1)[:, None]
        d_scaled_RN = (d_kappa_RN - kappa_RN * along_R) * inverse_R
        # Rows past the end bring in zeros, so they add nothing to the weights' gradients.
        d_k_k_RN += d_scaled_RN * source_RN
        d_source_RN = d_scaled_RN * k_k_N[None, :]

        d_key_RN = _load(d_key, at_RN, inside)
        if HAS_KEY_READ:
            d_key_RN += _load(d_key_read, at_RN, inside)
        through_key_RN = d_key_RN * k_RN
        d_k_a_RN += through_key_RN * (rate_RN - 1.0)
        d_rate_RN = through_b_RN * kappa_RN + through_key_RN * k_a_N[None, :]
        d_rate_RN *= rate_RN * (1.0 - rate_RN)
        tl.store(d_rate + at_RN, d_rate_RN.to(d_rate.dtype.element_ty), mask=inside)
        dk_RN = d_key_RN * (1.0 + (rate_RN - 1.0) * k_a_N[None, :])
        if SHARED:
            dk_RN += d_source_RN
        else:
            tl.store(d_source + at_RN, d_source_RN.to(d_source.dtype.element_ty), mask=inside)
        tl.store(dk + at_RN, dk_RN.to(dk.dtype.element_ty), mask=inside)
    partial_N = program.to(tl.int64) * (2 * heads * SIZE) + channel_N
    tl.store(d_weights + partial_N, tl.sum(d_k_k_RN, 0))
    tl.store(d_weights + partial_N + heads * SIZE, tl.sum(d_k_a_RN, 0))
