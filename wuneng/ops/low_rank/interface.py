"""Low-rank projections with a bias, of which RWKV-7 makes decay, rate, value mix and gate."""

from __future__ import annotations

import torch
from torch import Tensor

from wuneng.ops.backend import candidates
from wuneng.ops.head_arguments import LowRank
from wuneng.ops.low_rank import native
from wuneng.ops.native import few_tokens

__all__ = ["LowRank", "head_projections", "low_rank"]


def low_rank(
    x: Tensor,
    weights: LowRank,
    *,
    tanh: bool = False,
    size: int = 64,
    backend: str | None = None,
) -> Tensor:
    """bias + middle(x down) up, with middle = tanh or nothing (RWKV-LM's w0, w1, w2; a0, a1, a2).

    Args:
        x: ``[B, T, D]``.
        weights: ``[D, rank]``, ``[rank, C]``, ``[C]`` or None.
        size: head size, whose C kernels take one or a few tokens without gradients.
        backend: as :mod:`wuneng.ops.backend` says.

    Returns:
        ``[B, T, C]`` in x's dtype; float32 where x is of lower precision than the bias.
    """
    allowed = candidates("low_rank", x.device, backend)
    may_be_read = "native" in allowed and _have_their_shapes(x, weights)
    if may_be_read and few_tokens.takes(size, _products(x, weights), x, *weights):
        return native.low_rank(size, x, weights, tanh)
    inner = x @ weights.down
    if tanh:
        inner = torch.tanh(inner)
    bias = weights.bias
    if bias is None:
        return inner @ weights.up
    if inner.dtype == bias.dtype:
        return torch.nn.functional.linear(inner, weights.up.t(), bias)
    return bias.float() + (inner @ weights.up).float()


def head_projections(
    x: Tensor,
    receptance: Tensor,
    decay: LowRank,
    rate: LowRank,
    *,
    size: int = 64,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Receptance and the logits of decay (through tanh) and rate, all of the same input.

    Args:
        x: ``[B, T, D]``.
        receptance: ``[C, D]``.
        decay, rate, size, backend: as :func:`low_rank`.

    Returns:
        r, w, a ``[B, T, C]``.
    """
    shaped = all(_have_their_shapes(x, weights) for weights in (decay, rate))
    if shaped and "native" in candidates("low_rank", x.device, backend):
        products = x.numel() * receptance.shape[0] + _products(x, decay) + _products(x, rate)
        if few_tokens.takes(size, products, x, receptance, *decay, *rate):
            return native.projections(size, x, receptance, decay, rate)
    r = torch.nn.functional.linear(x, receptance)
    w = low_rank(x, decay, tanh=True, size=size, backend=backend)
    return r, w, low_rank(x, rate, size=size, backend=backend)


def _have_their_shapes(x: Tensor, weights: LowRank) -> bool:
    """Whether C reads no further than they go: torch would broadcast a bias."""
    down, up, bias = weights
    fits = down.shape == (x.shape[-1], up.shape[0])
    return fits and (bias is None or bias.shape == (up.shape[1],))


def _products(x: Tensor, weights: LowRank) -> int:
    """Multiplications of a low-rank projection."""
    rank, width = weights.up.shape
    return x.numel() // x.shape[-1] * rank * (x.shape[-1] + width)
