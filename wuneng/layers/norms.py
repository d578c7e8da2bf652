"""Normalisations: RMSNorm as Llama computes it, and the per-head GroupNorm of RWKV-7.

Statistics are float32 whatever half precision comes in, and float64 for float64.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wuneng.ops import rms_norm


class RMSNorm(nn.Module):
    """Root-mean-square norm of the last dimension, with Llama's order of casts."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class WideRMSNorm(RMSNorm):
    """As OLMo 2 computes it: rounded once, after the weight."""

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight * _scaled_to_one(x, self.eps)).to(x.dtype)


class PlusOneRMSNorm(nn.Module):
    """As Gemma computes it: the weight, which starts at zero, says how far the scale is from 1."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return (_scaled_to_one(x, self.eps) * (1.0 + _widened(self.weight))).to(x.dtype)


class HeadRMSNorm(nn.Module):
    """RMSNorm of each head ``[..., heads, N]`` with a weight per channel ``[heads, N]``."""

    def __init__(self, heads: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, head_dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = _scaled_to_one(x, self.eps)
        return self.weight * wide.to(x.dtype)


class HeadGroupNorm(nn.Module):
    """RWKV-7's ``ln_x``: each head ``[..., heads, N]`` normalised on its own, affine per channel.

    ``eps`` is 64e-5 in RWKV-LM.
    """

    def __init__(self, heads: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, head_dim))
        self.bias = nn.Parameter(torch.zeros(heads, head_dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = nn.functional.layer_norm(_widened(x), x.shape[-1:], eps=self.eps)
        return torch.addcmul(self.bias, wide.to(x.dtype), self.weight)


_RMS_NORMS = {
    "rmsnorm": RMSNorm,
    "rmsnorm_wide": WideRMSNorm,
    "rmsnorm_plus_one": PlusOneRMSNorm,
}


def make_norm(kind: str, size: int, eps: float) -> nn.Module:
    """The block's norm: ``rmsnorm`` (Llama), ``rmsnorm_wide`` (OLMo 2), ``rmsnorm_plus_one``
    (Gemma) or ``layernorm`` (RWKV-7)."""
    return nn.LayerNorm(size, eps=eps) if kind == "layernorm" else _RMS_NORMS[kind](size, eps)


def make_query_norm(kind: str, size: int, eps: float) -> nn.Module:
    """The norm of queries or keys: the block's kind, and RMSNorm where that is LayerNorm."""
    return _RMS_NORMS.get(kind, RMSNorm)(size, eps)


def _scaled_to_one(x: Tensor, eps: float) -> Tensor:
    """``x`` over its root mean square, in float32 or wider."""
    wide = _widened(x)
    return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)


def _widened(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
