"""Token shift on CUDA: u_t + mu (u_{t-1} - u_t), one kernel forward and one backward.

Neighbouring tokens lie in the same tile, so memory is read once: the second read of a row is a hit
in the first-level cache. A program of the backward pass walks over a range of tiles of one block of
channels and leaves one partial sum per channel for mu, which torch adds in their order.

Legend: B batch, T tokens, C channels; a tile is L tokens by K channels.
"""
# mypy: disable-error-code="no-untyped-def"
# Triton traces the kernels; their tensors have no useful static type.

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from wuneng.ops.wkv7.triton_launch import DTYPES, on_device, processors, split_tiles

TOKENS = 16
CHANNELS = 128
WARPS = 4
PROGRAMS_PER_PROCESSOR = 16
"""Of the backward pass: enough to fill a GPU, few enough that partial sums are cheap."""


@triton.jit
def token_shift_forward_kernel(
    u,  # [B, T, C], channels next to each other
    mu,  # [C]
    out,  # [B, T, C]
    tokens, channels, token_tiles, batch_stride, token_stride,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """One tile; u may be a slice of something wider."""
    blocks = tl.cdiv(channels, CHANNELS)
    row = (tl.program_id(0) // blocks // token_tiles).to(tl.int64)
    tile = tl.program_id(0) // blocks % token_tiles
    channel_K = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    token_L = tile * TOKENS + tl.arange(0, TOKENS)
    inside = (token_L < tokens)[:, None] & (channel_K < channels)[None, :]
    later = inside & (token_L > 0)[:, None]
    at_LK = token_L[:, None].to(tl.int64) * token_stride + channel_K[None, :]
    at_LK += row * batch_stride
    u_LK = tl.load(u + at_LK, mask=inside, other=0.0).to(tl.float32)
    before_LK = tl.load(u + at_LK - token_stride, mask=later, other=0.0).to(tl.float32)
    mu_K = tl.load(mu + channel_K, mask=channel_K < channels, other=0.0).to(tl.float32)
    out_LK = u_LK + mu_K[None, :] * (before_LK - u_LK)
    to_LK = (row * tokens + token_L[:, None]) * channels + channel_K[None, :]
    tl.store(out + to_LK, out_LK.to(out.dtype.element_ty), mask=inside)


@triton.jit
def token_shift_backward_kernel(
    u,  # [B, T, C], channels next to each other
    mu,  # [C]
    d_out,  # [B, T, C]
    du,  # [B, T, C]
    d_mu,  # [programs, C] float32
    tokens, channels, token_tiles, tiles, each, batch_stride, token_stride,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    """``each`` of all ``tiles`` (B x token_tiles) of one block of channels."""
    blocks = tl.cdiv(channels, CHANNELS)
    program = tl.program_id(0) // blocks
    channel_K = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    mu_K = tl.load(mu + channel_K, mask=channel_K < channels, other=0.0).to(tl.float32)
    d_mu_LK = tl.zeros((TOKENS, CHANNELS), tl.float32)
    for tile in range(program * each, tl.minimum(program * each + each, tiles)):
        row = (tile // token_tiles).to(tl.int64)
        token_L = tile % token_tiles * TOKENS + tl.arange(0, TOKENS)
        inside = (token_L < tokens)[:, None] & (channel_K < channels)[None, :]
        later = inside & (token_L > 0)[:, None]
        earlier = inside & (token_L < tokens - 1)[:, None]
        at_LK = token_L[:, None].to(tl.int64) * token_stride + channel_K[None, :]
        at_LK += row * batch_stride
        to_LK = (row * tokens + token_L[:, None]) * channels + channel_K[None, :]
        # Outside the tensor everything that comes in is zero, so nothing is added to mu's.
        now_LK = tl.load(d_out + to_LK, mask=inside, other=0.0).to(tl.float32)
        next_LK = tl.load(d_out + to_LK + channels, mask=earlier, other=0.0).to(tl.float32)
        u_LK = tl.load(u + at_LK, mask=inside, other=0.0).to(tl.float32)
        before_LK = tl.load(u + at_LK - token_stride, mask=later, other=0.0).to(tl.float32)
        d_mu_LK += now_LK * (before_LK - u_LK)
        du_LK = now_LK + mu_K[None, :] * (next_LK - now_LK)
        tl.store(du + to_LK, du_LK.to(du.dtype.element_ty), mask=inside)
    partial_K = program.to(tl.int64) * channels + channel_K
    tl.store(d_mu + partial_K, tl.sum(d_mu_LK, 0), mask=channel_K < channels)


def takes(u: Tensor, mu: Tensor) -> bool:
    """Whether the kernels can run on these."""
    return u.dtype in DTYPES and mu.dtype in DTYPES


def token_shift_triton(u: Tensor, mu: Tensor) -> Tensor:
    """As :func:`wuneng.ops.token_shift.token_shift`, by the kernels; arithmetic is float32.

    Float32, bfloat16 or float16, any number of channels; unchecked (:func:`takes`).
    """
    return torch.ops.wuneng.token_shift_triton(u, mu)


@torch.library.custom_op("wuneng::token_shift_triton", mutates_args=())
def _forward(u: Tensor, mu: Tensor) -> Tensor:
    out = torch.empty_like(u, memory_format=torch.contiguous_format)
    if out.numel() == 0:
        return out
    u = _with_dense_channels(u)
    batch, tokens, channels = u.shape
    tile, token_tiles = _tile(channels), triton.cdiv(tokens, TOKENS)
    with on_device(u):
        token_shift_forward_kernel[(batch * token_tiles * triton.cdiv(channels, tile),)](
            *(u, mu.contiguous(), out),
            *(tokens, channels, token_tiles, u.stride(0), u.stride(1)),
            TOKENS=TOKENS,
            CHANNELS=tile,
            num_warps=WARPS,
        )
    return out


def _with_dense_channels(u: Tensor) -> Tensor:
    return u if u.stride(-1) == 1 else u.contiguous()


def _tile(channels: int) -> int:
    return min(CHANNELS, triton.next_power_of_2(channels))


@_forward.register_fake
def _(u, mu):  # type: ignore[no-untyped-def]
    return torch.empty_like(u, memory_format=torch.contiguous_format)


@torch.library.custom_op("wuneng::token_shift_triton_backward", mutates_args=())
def _backward(u: Tensor, mu: Tensor, d_out: Tensor) -> tuple[Tensor, Tensor]:
    du = torch.empty_like(u, memory_format=torch.contiguous_format)
    if u.numel() == 0:
        return du, torch.zeros_like(mu)
    u = _with_dense_channels(u)
    batch, tokens, channels = u.shape
    tile, token_tiles = _tile(channels), triton.cdiv(tokens, TOKENS)
    blocks = triton.cdiv(channels, tile)
    each, programs = backward_split(batch * token_tiles, blocks, processors(u.device))
    partial = u.new_empty(programs, channels, dtype=torch.float32)
    with on_device(u):
        token_shift_backward_kernel[(programs * blocks,)](
            *(u, mu.contiguous(), d_out.contiguous(), du, partial),
            *(tokens, channels, token_tiles, batch * token_tiles, each),
            *(u.stride(0), u.stride(1)),
            TOKENS=TOKENS,
            CHANNELS=tile,
            num_warps=WARPS,
        )
    return du, partial.sum(0).to(mu.dtype)


def backward_split(tiles: int, blocks: int, processors: int) -> tuple[int, int]:
    """Tiles of one program, and programs of one block of channels."""
    return split_tiles(tiles, blocks, PROGRAMS_PER_PROCESSOR * processors)


@_backward.register_fake
def _(u, mu, d_out):  # type: ignore[no-untyped-def]
    return torch.empty_like(u, memory_format=torch.contiguous_format), torch.empty_like(mu)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.wuneng.token_shift_triton_backward(*ctx.saved_tensors, d_out)


_forward.register_autograd(_differentiate, setup_context=_setup_context)
