"""Cross-head interaction on a GPU: one program per state head and tile of tokens, each direction.

    A (its group), R ------------> [ grouped, rms, [A^g; R] W, gate ] --> A', [lambda R; Mid]
    A, R, dA', d[lambda R; Mid] -> [ the forward again, by hand back ] --> dA, dR, parts of weights'

Nothing is kept for the backward pass but A and R: what is recomputed costs two products of
``[BLOCK, SIZE]`` by ``[SIZE, SIZE]``, where storing it would cost three tensors of traffic. The
backward's programs each take every BLOCKS-th tile and sum the weights' gradients in registers; the
parts are added up afterwards in a fixed order, so gradients are the same on every run.

Equations: :mod:`wuneng.ops.cross_head` and :mod:`wuneng.ops.cross_head.by_hand`. Letters of
tensors: T tokens of a tile (BLOCK), N channels of a head (SIZE).
"""
# mypy: disable-error-code="no-untyped-def"
# Triton traces these functions; its tensors have no useful static type.

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

ADDITIVE, GATED, CONCAT = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
KINDS = {"additive": 0, "gated": 1, "concat": 2}


@dataclass(frozen=True)
class Launch:
    """Tokens of a tile, warps of a program, and depth of the pipeline for loads."""

    block: int
    warps: int
    stages: int


def forward_launch(operand: torch.dtype, size: int) -> Launch:
    """Launch for operands of a type; what compiles for sm_80 to sm_100 with the least spilling."""
    wide = operand == torch.float32 or size > 64
    return Launch(32 if wide else 64, 8 if wide else 4, 1)


def backward_launch(operand: torch.dtype, size: int) -> Launch:
    """As :func:`forward_launch`. Both gradients of a matrix are in registers, hence eight warps."""
    wide = operand == torch.float32 or size > 64
    return Launch(16 if wide else 32, 4 if size < 64 else 8, 1)


@triton.jit
def load_TN(base, offset_TN, mask_TN):
    """A tile as float32, zero outside of the sequence."""
    return tl.load(base + offset_TN, mask=mask_TN, other=0.0).to(tl.float32)


@triton.jit
def product(x, y, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """x y in float32, of operands in OPERAND."""
    return tl.dot(x.to(OPERAND), y.to(OPERAND), input_precision=PRECISION)


@triton.jit
def normalised_group(
    A, mix, head, token_T, mask_TN, attention_heads, eps,
    SIZE: tl.constexpr, GROUP: tl.constexpr, SHARED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """xhat ``[T, N]`` of a state head's attention heads, and 1 / rms ``[T]``."""
    channel_N = tl.arange(0, SIZE)
    grouped_TN = tl.zeros([BLOCK, SIZE], dtype=tl.float32)
    for j in tl.static_range(GROUP):
        own = head // SHARED * GROUP + j
        offset_TN = (token_T[:, None] * attention_heads + own) * SIZE + channel_N[None, :]
        weight = tl.load(mix + head * GROUP + j).to(tl.float32)
        grouped_TN += load_TN(A, offset_TN, mask_TN) * weight
    mean_T = tl.sum(grouped_TN * grouped_TN, 1) / SIZE
    rstd_T = 1.0 / tl.sqrt(mean_T + eps)
    return grouped_TN * rstd_T[:, None], rstd_T


@triton.jit
def shared_mean(
    R, head, token_T, mask_TN, heads,
    SIZE: tl.constexpr, SHARED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """up(R) ``[T, N]``: the mean of the state heads that share this one's attention head."""
    channel_N = tl.arange(0, SIZE)
    total_TN = tl.zeros([BLOCK, SIZE], dtype=tl.float32)
    for i in tl.static_range(SHARED):
        own = head // SHARED * SHARED + i
        offset_TN = (token_T[:, None] * heads + own) * SIZE + channel_N[None, :]
        total_TN += load_TN(R, offset_TN, mask_TN)
    return total_TN / SHARED


@triton.jit
def cross_head_forward_kernel(
    A,  # [tokens, attention_heads, SIZE], any float type
    R,  # [tokens, heads, SIZE]
    scale,  # [heads], or [1] with scale_stride 0
    mix,  # [heads, GROUP]
    norm,  # [heads, SIZE]
    alpha_or_matrix,  # alpha [attention_heads, SIZE], or [heads, 2 SIZE, SIZE]
    beta_or_bias,  # [heads, SIZE], or None
    changed,  # A', like A; None unless additive
    branch,  # [tokens, 2, heads, SIZE]
    tokens, heads, attention_heads, scale_stride, eps,
    KIND: tl.constexpr,
    SIZE: tl.constexpr,
    GROUP: tl.constexpr,  # attention heads of a state head, or
    SHARED: tl.constexpr,  # state heads of an attention head; one of them is 1
    BLOCK: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Write A' and the branch."""
    head = tl.program_id(0)
    token_T = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    channel_N = tl.arange(0, SIZE)
    mask_TN = (token_T < tokens)[:, None]
    vector_N = head * SIZE + channel_N
    xhat_TN, _ = normalised_group(
        A, mix, head, token_T, mask_TN, attention_heads, eps, SIZE, GROUP, SHARED, BLOCK
    )
    grouped_TN = xhat_TN * tl.load(norm + vector_N).to(tl.float32)[None, :]
    R_TN = load_TN(R, (token_T[:, None] * heads + head) * SIZE + channel_N[None, :], mask_TN)

    out_TN = (token_T[:, None] * 2 * heads + head) * SIZE + channel_N[None, :]
    scaled_TN = R_TN * tl.load(scale + head * scale_stride).to(tl.float32)
    tl.store(branch + out_TN, scaled_TN.to(branch.dtype.element_ty), mask=mask_TN)
    if KIND == ADDITIVE:
        beta_N = tl.load(beta_or_bias + vector_N).to(tl.float32)
        middle_TN = grouped_TN + beta_N[None, :] * R_TN
        if SHARED > 1:
            up_TN = shared_mean(R, head, token_T, mask_TN, heads, SIZE, SHARED, BLOCK)
            mask_TN = mask_TN & (head % SHARED == 0)
        else:
            up_TN = R_TN
        for j in tl.static_range(GROUP):
            own = head // SHARED * GROUP + j
            offset_TN = (token_T[:, None] * attention_heads + own) * SIZE + channel_N[None, :]
            alpha_N = tl.load(alpha_or_matrix + own * SIZE + channel_N).to(tl.float32)
            A_TN = load_TN(A, offset_TN, mask_TN) + alpha_N[None, :] * up_TN
            tl.store(changed + offset_TN, A_TN.to(changed.dtype.element_ty), mask=mask_TN)
    else:
        weight_NN = head * 2 * SIZE * SIZE + channel_N[:, None] * SIZE + channel_N[None, :]
        middle_TN = product(grouped_TN, tl.load(alpha_or_matrix + weight_NN), OPERAND, PRECISION)
        below_NN = tl.load(alpha_or_matrix + SIZE * SIZE + weight_NN)
        middle_TN += product(R_TN, below_NN, OPERAND, PRECISION)
        if KIND == GATED:
            bias_N = tl.load(beta_or_bias + vector_N).to(tl.float32)
            gate_TN = tl.sigmoid(middle_TN + bias_N[None, :])
            middle_TN = R_TN + gate_TN * (grouped_TN - R_TN)
    middle_TN = middle_TN.to(branch.dtype.element_ty)
    tl.store(branch + out_TN + heads * SIZE, middle_TN, mask=(token_T < tokens)[:, None])


@triton.jit
def cross_head_backward_kernel(
    A, R, scale, mix, norm, alpha_or_matrix, beta_or_bias,  # as the forward's
    d_changed,  # like A; None unless additive
    d_branch,  # [tokens, 2, heads, SIZE]
    dA,  # like A; float32 [tokens, heads, SIZE] if SHARED > 1, without d_changed itself
    dR,  # like R
    d_vectors,  # float32 [blocks, heads, 3, SIZE]: of scale (by channel), norm, beta_or_bias
    d_mix,  # float32 [blocks, heads, GROUP_ROOM]
    d_alpha,  # float32 [blocks, heads, GROUP_ROOM, SIZE]; None unless additive
    d_matrix,  # float32 [blocks, heads, 2 SIZE, SIZE]; None if additive
    tokens, heads, attention_heads, scale_stride, eps,
    KIND: tl.constexpr,
    SIZE: tl.constexpr,
    GROUP: tl.constexpr,
    SHARED: tl.constexpr,
    GROUP_ROOM: tl.constexpr,  # GROUP's next power of two
    BLOCK: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Write dA, dR and this program's part of every weight's gradient."""
    head = tl.program_id(0)
    block = tl.program_id(1)
    blocks = tl.num_programs(1)
    channel_N = tl.arange(0, SIZE)
    group_G = tl.arange(0, GROUP_ROOM)
    vector_N = head * SIZE + channel_N
    norm_N = tl.load(norm + vector_N).to(tl.float32)
    lambda_ = tl.load(scale + head * scale_stride).to(tl.float32)
    d_scale_N = tl.zeros([SIZE], dtype=tl.float32)
    d_norm_N = tl.zeros([SIZE], dtype=tl.float32)
    d_beta_or_bias_N = tl.zeros([SIZE], dtype=tl.float32)
    d_mix_G = tl.zeros([GROUP_ROOM], dtype=tl.float32)
    if KIND == ADDITIVE:
        beta_N = tl.load(beta_or_bias + vector_N).to(tl.float32)
        d_alpha_GN = tl.zeros([GROUP_ROOM, SIZE], dtype=tl.float32)
    else:
        weight_NN = head * 2 * SIZE * SIZE + channel_N[:, None] * SIZE + channel_N[None, :]
        above_NN = tl.load(alpha_or_matrix + weight_NN).to(OPERAND)
        below_NN = tl.load(alpha_or_matrix + SIZE * SIZE + weight_NN).to(OPERAND)
        d_above_NN = tl.zeros([SIZE, SIZE], dtype=tl.float32)
        d_below_NN = tl.zeros([SIZE, SIZE], dtype=tl.float32)

    for tile in range(block, tl.cdiv(tokens, BLOCK), blocks):
        token_T = tile * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
        mask_TN = (token_T < tokens)[:, None]
        xhat_TN, rstd_T = normalised_group(
            A, mix, head, token_T, mask_TN, attention_heads, eps, SIZE, GROUP, SHARED, BLOCK
        )
        R_offset_TN = (token_T[:, None] * heads + head) * SIZE + channel_N[None, :]
        R_TN = load_TN(R, R_offset_TN, mask_TN)
        out_TN = (token_T[:, None] * 2 * heads + head) * SIZE + channel_N[None, :]
        dS_TN = load_TN(d_branch, out_TN, mask_TN)
        dM_TN = load_TN(d_branch + heads * SIZE, out_TN, mask_TN)
        d_scale_N += tl.sum(dS_TN * R_TN, 0)
        dR_TN = lambda_ * dS_TN
        if KIND == ADDITIVE:
            dG_TN = dM_TN
            d_beta_or_bias_N += tl.sum(dM_TN * R_TN, 0)
            dR_TN += beta_N[None, :] * dM_TN
            up_TN = R_TN
            if SHARED > 1:
                up_TN = shared_mean(R, head, token_T, mask_TN, heads, SIZE, SHARED, BLOCK)
            for j in tl.static_range(GROUP):
                own = head // SHARED * GROUP + j
                offset_TN = (token_T[:, None] * attention_heads + own) * SIZE + channel_N[None, :]
                d_own_TN = load_TN(d_changed, offset_TN, mask_TN)
                alpha_N = tl.load(alpha_or_matrix + own * SIZE + channel_N).to(tl.float32)
                dR_TN += alpha_N[None, :] * d_own_TN / SHARED
                d_alpha_N = tl.sum(d_own_TN * up_TN, 0)
                d_alpha_GN += tl.where(group_G[:, None] == j, d_alpha_N[None, :], 0.0)
        else:
            grouped_TN = xhat_TN * norm_N[None, :]
            dz_TN = dM_TN
            if KIND == GATED:
                z_TN = product(grouped_TN, above_NN, OPERAND, PRECISION)
                z_TN += product(R_TN, below_NN, OPERAND, PRECISION)
                bias_N = tl.load(beta_or_bias + vector_N).to(tl.float32)
                gate_TN = tl.sigmoid(z_TN + bias_N[None, :])
                dz_TN = dM_TN * (grouped_TN - R_TN) * gate_TN * (1.0 - gate_TN)
                d_beta_or_bias_N += tl.sum(dz_TN, 0)
            dG_TN = product(dz_TN, tl.trans(above_NN), OPERAND, PRECISION)
            dR_TN += product(dz_TN, tl.trans(below_NN), OPERAND, PRECISION)
            if KIND == GATED:
                dG_TN += gate_TN * dM_TN
                dR_TN += (1.0 - gate_TN) * dM_TN
            d_above_NN += product(tl.trans(grouped_TN), dz_TN, OPERAND, PRECISION)
            d_below_NN += product(tl.trans(R_TN), dz_TN, OPERAND, PRECISION)
        tl.store(dR + R_offset_TN, dR_TN.to(dR.dtype.element_ty), mask=mask_TN)

        d_norm_N += tl.sum(dG_TN * xhat_TN, 0)
        dG_TN = dG_TN * norm_N[None, :]
        along_T = tl.sum(dG_TN * xhat_TN, 1) / SIZE
        dx_TN = (dG_TN - xhat_TN * along_T[:, None]) * rstd_T[:, None]
        for j in tl.static_range(GROUP):
            own = head // SHARED * GROUP + j
            offset_TN = (token_T[:, None] * attention_heads + own) * SIZE + channel_N[None, :]
            d_mix_j = tl.sum(tl.sum(dx_TN * load_TN(A, offset_TN, mask_TN), 1), 0)
            d_mix_G += tl.where(group_G == j, d_mix_j, 0.0)
            dA_TN = dx_TN * tl.load(mix + head * GROUP + j).to(tl.float32)
            if SHARED > 1:
                tl.store(dA + R_offset_TN, dA_TN, mask=mask_TN)
            else:
                if KIND == ADDITIVE:
                    dA_TN += load_TN(d_changed, offset_TN, mask_TN)
                tl.store(dA + offset_TN, dA_TN.to(dA.dtype.element_ty), mask=mask_TN)

    part = block * heads + head
    tl.store(d_vectors + part * 3 * SIZE + channel_N, d_scale_N)
    tl.store(d_vectors + (part * 3 + 1) * SIZE + channel_N, d_norm_N)
    tl.store(d_vectors + (part * 3 + 2) * SIZE + channel_N, d_beta_or_bias_N)
    tl.store(d_mix + part * GROUP_ROOM + group_G, d_mix_G)
    if KIND == ADDITIVE:
        alpha_GN = (part * GROUP_ROOM + group_G[:, None]) * SIZE + channel_N[None, :]
        tl.store(d_alpha + alpha_GN, d_alpha_GN)
    else:
        matrix_NN = part * 2 * SIZE * SIZE + channel_N[:, None] * SIZE + channel_N[None, :]
        tl.store(d_matrix + matrix_NN, d_above_NN)
        tl.store(d_matrix + matrix_NN + SIZE * SIZE, d_below_NN)
