"""The state heads' readout on CUDA: one kernel forward, one backward.

Both are bound by memory: forward reads each input once and writes R, backward reads the inputs and
R's gradient once and writes every gradient once. Nothing is kept for the backward pass but the
inputs; the statistics are computed again from y, which has to be read anyway. A program of the
backward pass walks over a range of rows of one head and leaves one partial sum per channel for each
weight, and torch adds these in their order: the same bits on every run.

Legend: M rows (B T), S heads, N head size, R a tile's rows.
"""
# mypy: disable-error-code="no-untyped-def"
# Triton traces the kernels; their tensors have no useful static type.

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from wuneng.ops.readout.by_hand import Tensors
from wuneng.ops.wkv7.triton_launch import DTYPES, HEAD_SIZES, on_device, processors, split_tiles

ROWS = 16
"""Rows of a tile: 2 KB of bfloat16 at head size 64, eight channels a thread."""
WARPS = 4
PROGRAMS_PER_PROCESSOR = 16
"""Of the backward pass: enough to fill a GPU, few enough that partial sums are cheap."""


@triton.jit
def _standardised(y_RN, eps, SIZE: tl.constexpr):
    """(y - mean) / deviation of each row, and 1 / deviation."""
    centred_RN = y_RN - (tl.sum(y_RN, 1) / SIZE)[:, None]
    variance_R = tl.sum(centred_RN * centred_RN, 1) / SIZE
    inverse_R = 1.0 / tl.sqrt(variance_R + eps)
    return centred_RN * inverse_R[:, None], inverse_R


@triton.jit
def readout_forward_kernel(
    y, r, key, v,  # [M, S, SIZE]
    norm_weight, norm_bias, bonus,  # [S, SIZE], or None
    gate,  # [M, S, SIZE], or None
    out,  # [M, S, SIZE]
    rows, heads, eps,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_NORM: tl.constexpr,
    HAS_BONUS: tl.constexpr,
    HAS_GATE: tl.constexpr,
):  # fmt: skip
    """R = (groupnorm(y) weight + bias + (sum r k~ r_k) v) gate for a tile of one head's rows."""
    head = tl.program_id(0) % heads
    row_R = tl.program_id(0) // heads * ROWS + tl.arange(0, ROWS)
    channel_N = head * SIZE + tl.arange(0, SIZE)
    inside = (row_R < rows)[:, None]
    at_RN = row_R[:, None].to(tl.int64) * (heads * SIZE) + channel_N[None, :]
    z_RN = tl.load(y + at_RN, mask=inside, other=0.0).to(tl.float32)
    if HAS_NORM:
        z_RN, _ = _standardised(z_RN, eps, SIZE)
        weight_N = tl.load(norm_weight + channel_N).to(tl.float32)
        bias_N = tl.load(norm_bias + channel_N).to(tl.float32)
        z_RN = z_RN * weight_N[None, :] + bias_N[None, :]
    if HAS_BONUS:
        r_RN = tl.load(r + at_RN, mask=inside, other=0.0).to(tl.float32)
        key_RN = tl.load(key + at_RN, mask=inside, other=0.0).to(tl.float32)
        v_RN = tl.load(v + at_RN, mask=inside, other=0.0).to(tl.float32)
        bonus_N = tl.load(bonus + channel_N).to(tl.float32)
        z_RN += tl.sum(r_RN * key_RN * bonus_N[None, :], 1)[:, None] * v_RN
    if HAS_GATE:
        z_RN *= tl.load(gate + at_RN, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at_RN, z_RN.to(out.dtype.element_ty), mask=inside)


@triton.jit
def readout_backward_kernel(
    y, r, key, v,  # [M, S, SIZE]
    norm_weight, norm_bias, bonus,  # [S, SIZE], or None
    gate, d_out,  # [M, S, SIZE]
    dy, dr, d_key, dv, d_gate,  # [M, S, SIZE]
    d_weight, d_bias, d_bonus,  # [programs, S, SIZE] float32: one row per program of a head
    rows, heads, tiles, eps,
    SIZE: tl.constexpr, ROWS: tl.constexpr,
    HAS_NORM: tl.constexpr, HAS_BONUS: tl.constexpr, HAS_GATE: tl.constexpr,
):  # fmt: skip
    """Every gradient of the forward kernel over ``tiles`` tiles of one head's rows."""
    head = tl.program_id(0) % heads
    program = tl.program_id(0) // heads
    channel_N = head * SIZE + tl.arange(0, SIZE)
    d_weight_RN = tl.zeros((ROWS, SIZE), tl.float32)
    d_bias_RN = tl.zeros((ROWS, SIZE), tl.float32)
    d_bonus_RN = tl.zeros((ROWS, SIZE), tl.float32)
    if HAS_NORM:
        weight_N = tl.load(norm_weight + channel_N).to(tl.float32)
        bias_N = tl.load(norm_bias + channel_N).to(tl.float32)
    if HAS_BONUS:
        bonus_N = tl.load(bonus + channel_N).to(tl.float32)
    for tile in range(tiles):
        row_R = (program * tiles + tile) * ROWS + tl.arange(0, ROWS)
        inside = (row_R < rows)[:, None]
        at_RN = row_R[:, None].to(tl.int64) * (heads * SIZE) + channel_N[None, :]
        # Rows past the end bring in zeros, so they add nothing to the weights' gradients.
        incoming_RN = tl.load(d_out + at_RN, mask=inside, other=0.0).to(tl.float32)
        if HAS_NORM or HAS_GATE:
            z_RN = tl.load(y + at_RN, mask=inside, other=0.0).to(tl.float32)
        if HAS_NORM:
            normal_RN, inverse_R = _standardised(z_RN, eps, SIZE)
            z_RN = normal_RN * weight_N[None, :] + bias_N[None, :]
        if HAS_BONUS:
            r_RN = tl.load(r + at_RN, mask=inside, other=0.0).to(tl.float32)
            key_RN = tl.load(key + at_RN, mask=inside, other=0.0).to(tl.float32)
            v_RN = tl.load(v + at_RN, mask=inside, other=0.0).to(tl.float32)
            c_R = tl.sum(r_RN * key_RN * bonus_N[None, :], 1)
        if HAS_GATE:
            if HAS_BONUS:
                z_RN += c_R[:, None] * v_RN
            d_gate_RN = (incoming_RN * z_RN).to(d_gate.dtype.element_ty)
            tl.store(d_gate + at_RN, d_gate_RN, mask=inside)
            incoming_RN *= tl.load(gate + at_RN, mask=inside, other=0.0).to(tl.float32)
        if HAS_BONUS:
            dv_RN = (incoming_RN * c_R[:, None]).to(dv.dtype.element_ty)
            tl.store(dv + at_RN, dv_RN, mask=inside)
            dc_RN = tl.sum(incoming_RN * v_RN, 1)[:, None]
            d_bonus_RN += dc_RN * r_RN * key_RN
            dc_RN = dc_RN * bonus_N[None, :]
            tl.store(dr + at_RN, (dc_RN * key_RN).to(dr.dtype.element_ty), mask=inside)
            tl.store(d_key + at_RN, (dc_RN * r_RN).to(d_key.dtype.element_ty), mask=inside)
        if HAS_NORM:
            d_bias_RN += incoming_RN
            d_weight_RN += incoming_RN * normal_RN
            incoming_RN *= weight_N[None, :]
            mean_RN = (tl.sum(incoming_RN, 1) / SIZE)[:, None]
            along_RN = (tl.sum(incoming_RN * normal_RN, 1) / SIZE)[:, None]
            incoming_RN = (incoming_RN - mean_RN - normal_RN * along_RN) * inverse_R[:, None]
        tl.store(dy + at_RN, incoming_RN.to(dy.dtype.element_ty), mask=inside)
    partial_N = program.to(tl.int64) * heads * SIZE + channel_N
    if HAS_NORM:
        tl.store(d_weight + partial_N, tl.sum(d_weight_RN, 0))
        tl.store(d_bias + partial_N, tl.sum(d_bias_RN, 0))
    if HAS_BONUS:
        tl.store(d_bonus + partial_N, tl.sum(d_bonus_RN, 0))


def takes(y: Tensor, r: Tensor, key: Tensor, v: Tensor, *optional: Tensor | None) -> bool:
    """Whether the kernels can run on these (the arguments of :func:`state_readout_triton`)."""
    tensors = (y, r, key, v, *(x for x in optional if x is not None))
    return y.shape[-1] in HEAD_SIZES and all(x.dtype in DTYPES for x in tensors)


def state_readout_triton(*arguments: *Tensors, norm_eps: float) -> Tensor:
    """As :func:`wuneng.ops.readout.state_readout`, by the kernels.

    Head sizes 16, 32, 64 and 128 in float32, bfloat16 or float16, in any mixture; unchecked
    (:func:`takes`).
    """
    out: Tensor = torch.ops.wuneng.state_readout_triton(*arguments, norm_eps)
    return out


#: What both operators are given first, in torch's language.
_GIVEN = (
    "Tensor y, Tensor r, Tensor key, Tensor v, Tensor? norm_weight, Tensor? norm_bias, "
    "Tensor? bonus, Tensor? gate, float norm_eps"
)


@torch.library.custom_op(
    "wuneng::state_readout_triton", mutates_args=(), schema=f"({_GIVEN}) -> Tensor"
)
def _forward(*given: Any) -> Tensor:
    *inputs, norm_eps = given
    y, _, _, v, norm_weight, _, bonus, gate = inputs
    out = torch.empty_like(v, memory_format=torch.contiguous_format)
    heads, size = y.shape[-2:]
    rows = y.shape[0] * y.shape[1]
    if out.numel() == 0:
        return out
    with on_device(y):
        readout_forward_kernel[(triton.cdiv(rows, ROWS) * heads,)](
            *(_contiguous(x) for x in inputs),
            out,
            rows,
            heads,
            norm_eps,
            **_constants(size, norm_weight, bonus, gate),
        )
    return out


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _constants(
    size: int, norm_weight: Tensor | None, bonus: Tensor | None, gate: Tensor | None
) -> dict[str, Any]:
    return {
        "SIZE": size,
        "ROWS": ROWS,
        "HAS_NORM": norm_weight is not None,
        "HAS_BONUS": bonus is not None,
        "HAS_GATE": gate is not None,
        "num_warps": WARPS,
    }


@_forward.register_fake
def _(y, r, key, v, *others):  # type: ignore[no-untyped-def]
    return torch.empty_like(v, memory_format=torch.contiguous_format)


@torch.library.custom_op(
    "wuneng::state_readout_triton_backward",
    mutates_args=(),
    schema=f"({_GIVEN}, Tensor d_out) -> Tensor[]",
)
def _backward(*given: Any) -> list[Tensor]:
    *inputs, norm_eps, d_out = given
    y, _, _, _, norm_weight, _, bonus, gate = inputs
    gradients = _gradients(*inputs)
    dy, dr, d_key, dv, d_weight, d_bias, d_bonus, d_gate = gradients
    heads, size = y.shape[-2:]
    rows = y.shape[0] * y.shape[1]
    if y.numel() == 0:
        return [x.zero_() for x in gradients]
    tiles, programs = backward_split(rows, heads, processors(y.device))
    weights = (d_weight, d_bias, d_bonus)
    partials = [x.new_empty(programs, *x.shape, dtype=torch.float32) for x in weights]
    with on_device(y):
        readout_backward_kernel[(programs * heads,)](
            *(_contiguous(x) for x in (*inputs, d_out)),
            *(dy, dr, d_key, dv, d_gate, *partials),
            *(rows, heads, tiles, norm_eps),
            **_constants(size, norm_weight, bonus, gate),
        )
    for partial, gradient in zip(partials, weights, strict=True):
        gradient.copy_(partial.sum(0))
    return gradients


def backward_split(rows: int, heads: int, processors: int) -> tuple[int, int]:
    """Tiles of one program, and programs of one head."""
    return split_tiles(triton.cdiv(rows, ROWS), heads, PROGRAMS_PER_PROCESSOR * processors)


def _gradients(*inputs: *Tensors) -> list[Tensor]:
    """Memory for every gradient, in the order of the inputs; empty where there is none."""
    y, r, key, v, norm_weight, norm_bias, bonus, gate = inputs
    used = bonus is not None
    read = (x if used else None for x in (r, key, v))
    return [
        y.new_empty(0) if x is None else torch.empty_like(x, memory_format=torch.contiguous_format)
        for x in (y, *read, norm_weight, norm_bias, bonus, gate)
    ]


@_backward.register_fake
def _(*given: Any) -> list[Tensor]:
    return _gradients(*given[:8])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.norm_eps = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.wuneng.state_readout_triton_backward(
        *ctx.saved_tensors, ctx.norm_eps, d_out
    )
    present = [x is not None for x in ctx.saved_tensors]
    if ctx.saved_tensors[6] is None:  # without a bonus nothing depends on r, key and v
        present[1:4] = [False] * 3
    return (
        *(x if is_there else None for x, is_there in zip(gradients, present, strict=True)),
        None,
    )


_forward.register_autograd(_differentiate, setup_context=_setup_context)
