"""The algebra of ``ops.recurrence_inputs`` on one chunk's tiles, for kernels that read the raw
projections: forward, and from gradients of the recurrence's inputs back to the projections'.

    log w = -e^{-1/2} sigma(decay logit)        rate = sigma(rate logit)
    kappa = normalise_head(source * k_k)        a = -kappa        b = a_max * rate * kappa
    k~    = k * (1 + (rate - 1) * k_a)

All of it is float32 in registers: unlike the separate operator, nothing is rounded to the tensors'
dtype on the way to the recurrence. Backward is linear in da, db, dk~ and dw for given projections,
so parts of them (over value blocks) may be folded apart and added afterwards.

Letters in names give shapes: C tokens of the chunk, K key channels.
"""
# mypy: disable-error-code="no-untyped-def"
# Triton traces these functions; its tensors have no useful static type.

import triton
import triton.language as tl

from wuneng.ops.state_head.recurrence_inputs import LOG_DECAY_SCALE, NORM_EPS
from wuneng.ops.wkv7.triton_chunk import decay_factors, load_CK

SCALE = tl.constexpr(LOG_DECAY_SCALE)
EPS = tl.constexpr(NORM_EPS)


@triton.jit
def load_weight_K(weight, head, SIZE: tl.constexpr):
    """Load one head's row of a per-channel weight [heads, SIZE] as float32 [1, SIZE]."""
    return tl.load(weight + head * SIZE + tl.arange(0, SIZE)).to(tl.float32)[None, :]


@triton.jit
def log_decay_of(logit_CK, mask_CK):
    """Return the log decay; 0 in slots without a token, which must leave the state unchanged."""
    return tl.where(mask_CK, SCALE * tl.sigmoid(logit_CK), 0.0)


@triton.jit
def fold_log_decay(d_log_decay_CK, logit_CK):
    """Return the gradient of the decay's logit."""
    kept_CK = tl.sigmoid(logit_CK)
    return d_log_decay_CK * (SCALE * kept_CK * (1.0 - kept_CK))


@triton.jit
def removal_key(source_CK, k_k_K):
    """Return kappa and the reciprocal norm [C, 1] it was normalised with."""
    scaled_CK = source_CK * k_k_K
    norm_C = tl.maximum(tl.sqrt(tl.sum(scaled_CK * scaled_CK, 1)), EPS)
    inverse_norm_C = (1.0 / norm_C)[:, None]
    return scaled_CK * inverse_norm_C, inverse_norm_C


@triton.jit
def load_inputs(
    k, source, rate_logit, k_k, k_a, head, start, tile_CK, mask_CK, SHARED: tl.constexpr
):
    """Return `(kappa_CK, rate_CK, key_CK)`, key being k~; SHARED: the source is k."""
    SIZE: tl.constexpr = tile_CK.shape[1]
    key_CK = load_CK(k + start, tile_CK, mask_CK)
    if SHARED:
        source_CK = key_CK
    else:
        source_CK = load_CK(source + start, tile_CK, mask_CK)
    kappa_CK, _ = removal_key(source_CK, load_weight_K(k_k, head, SIZE))
    rate_CK = tl.sigmoid(load_CK(rate_logit + start, tile_CK, mask_CK))
    key_CK *= 1.0 + (rate_CK - 1.0) * load_weight_K(k_a, head, SIZE)
    return kappa_CK, rate_CK, key_CK


@triton.jit
def load_log_decay(pointers, offsets_CK, mask_CK, RAW: tl.constexpr):
    """Return the log decay of a tile, with RAW from its logit."""
    log_decay_CK = load_CK(pointers, offsets_CK, mask_CK)
    if RAW:
        log_decay_CK = log_decay_of(log_decay_CK, mask_CK)
    return log_decay_CK


@triton.jit
def load_operands(
    r, w, k, v, a, b, k_k, k_a, head, start, tile_CK, tile_VC, mask_C,
    CHUNK: tl.constexpr,
    OPERAND: tl.constexpr,
    RAW: tl.constexpr,
    SHARED: tl.constexpr,
    A_MAX: tl.constexpr,
):  # fmt: skip
    """Return `(r_CK, k_CK, a_CK, b_CK, v_VC, key_CK, enter_K, leave_K)` of a scan's chunk.

    The first four in the chunk's frame, with v rounded to OPERAND; key_CK is k, with RAW k~. The
    factors are :func:`decay_factors`'.
    """
    mask_CK = mask_C[:, None]
    log_decay_CK = load_log_decay(w + start, tile_CK, mask_CK, RAW)
    before_CK, after_CK, back_CK, enter_K, leave_K = decay_factors(log_decay_CK, CHUNK)
    if RAW:
        kappa_CK, rate_CK, key_CK = load_inputs(
            k, a, b, k_k, k_a, head, start, tile_CK, mask_CK, SHARED
        )
        a_CK = (-kappa_CK * before_CK).to(OPERAND)
        b_CK = (A_MAX * rate_CK * kappa_CK * back_CK).to(OPERAND)
    else:
        a_CK = (load_CK(a + start, tile_CK, mask_CK) * before_CK).to(OPERAND)
        b_CK = (load_CK(b + start, tile_CK, mask_CK) * back_CK).to(OPERAND)
        key_CK = load_CK(k + start, tile_CK, mask_CK)
    k_CK = (key_CK * back_CK).to(OPERAND)
    r_CK = (load_CK(r + start, tile_CK, mask_CK) * after_CK).to(OPERAND)
    v_VC = tl.load(v + start + tile_VC, mask=mask_C[None, :], other=0.0).to(OPERAND)
    return r_CK, k_CK, a_CK, b_CK, v_VC, key_CK, enter_K, leave_K


@triton.jit
def fold_removal(da_CK, db_CK, source_CK, rate_CK, k_k_K, A_MAX: tl.constexpr):
    """Return gradients of the source, of the rate (its part through b) and of k_k (this chunk's).

    `d kappa = a_max rate db - da`, then through the normalisation: what is orthogonal to kappa,
    over the norm.
    """
    kappa_CK, inverse_norm_C = removal_key(source_CK, k_k_K)
    d_rate_CK = A_MAX * db_CK
    d_kappa_CK = d_rate_CK * rate_CK - da_CK
    along_C = tl.sum(d_kappa_CK * kappa_CK, 1)[:, None]
    d_scaled_CK = (d_kappa_CK - kappa_CK * along_C) * inverse_norm_C
    return d_scaled_CK * k_k_K, d_rate_CK * kappa_CK, tl.sum(d_scaled_CK * source_CK, 0)


@triton.jit
def fold_replacement(d_key_CK, d_rate_CK, k_CK, rate_CK, k_a_K):
    """Return gradients of k (its part through k~), of the rate's logit and of k_a (this chunk's).

    `d_key_CK` is that of k~, `d_rate_CK` what reaches the rate through b.
    """
    through_CK = d_key_CK * k_CK
    d_logit_CK = (d_rate_CK + through_CK * k_a_K) * rate_CK * (1.0 - rate_CK)
    d_k_CK = d_key_CK * (1.0 + (rate_CK - 1.0) * k_a_K)
    return d_k_CK, d_logit_CK, tl.sum(through_CK * (rate_CK - 1.0), 0)
