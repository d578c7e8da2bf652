"""Low-rank projections of one or a few tokens in C (``low_rank.c``), without gradients."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Any

from torch import Tensor

from wuneng.ops.head_arguments import LinearPair, LowRank
from wuneng.ops.native.compiler import library
from wuneng.ops.native.memory import room

PRODUCT = struct.Struct("=6q")
LOW_RANK = struct.Struct("=12q")
#: A block of none, and what stands between the two products; or nothing there, sigma after both.
NO_LOW_RANK = bytes(LOW_RANK.size)
NOTHING, TANH, SIGMA, SIGMA_LAST = range(4)


@lru_cache
def _kernels(size: int) -> Any:
    kernels = library(size)
    assert kernels is not None
    kernels.low_rank.restype = kernels.projections.restype = None
    return kernels


def low_rank(size: int, x: Tensor, weights: LowRank, tanh: bool) -> Tensor:
    """``[B, T, C]`` from x ``[B, T, D]``; ``tanh`` between the two products or nothing."""
    block, out, middle = _low_rank_block(x, weights, tanh)
    _kernels(size).low_rank(block)
    del middle
    return out


def projections(
    size: int, x: Tensor, receptance: Tensor, decay: LowRank, rate: LowRank
) -> tuple[Tensor, Tensor, Tensor]:
    """r and the logits of decay and rate, ``[B, T, C]`` each, as :func:`head_projections`."""
    batch, tokens, inner = x.shape
    width = receptance.shape[0]
    r = room(batch, tokens, width)
    addresses = (x.data_ptr(), receptance.data_ptr(), r.data_ptr())
    product = PRODUCT.pack(batch * tokens, inner, width, *addresses)
    decay_block, w, decay_middle = _low_rank_block(x, decay, True)
    rate_block, a, rate_middle = _low_rank_block(x, rate, False)
    _kernels(size).projections(product, decay_block, rate_block)
    del decay_middle, rate_middle
    return r, w, a


def _low_rank_block(x: Tensor, weights: LowRank, tanh: bool) -> tuple[bytes, Tensor, Tensor]:
    """The argument block, the output, and working memory that must outlive the call."""
    batch, tokens, _ = x.shape
    rank, width = weights.up.shape
    out, middle = room(batch, tokens, width), room(rank)
    between = TANH if tanh else NOTHING
    addresses = (middle.data_ptr(), out.data_ptr())
    block = low_rank_block(batch * tokens, x.data_ptr(), weights, between, *addresses)
    return block, out, middle


def low_rank_block(
    tokens: int,
    x: int,
    weights: LowRank | LinearPair,
    between: int,
    middle: int,
    out: int,
) -> bytes:
    """The argument block.

    Args:
        x, middle, out: addresses of ``[tokens, D]``, of working memory ``[rank]`` (of a
            :class:`LinearPair` ``[tokens, rank]``) and of ``[tokens, C]``.
        weights: of a :class:`LinearPair` rank and width are multiples of 4, and nothing stands
            between the two products.
        between: what stands between the two products, or :data:`SIGMA_LAST`.
    """
    down, up, bias = weights
    tensors = (down.data_ptr(), up.data_ptr(), 0 if bias is None else bias.data_ptr())
    linear = isinstance(weights, LinearPair)
    shape = (*reversed(down.shape), up.shape[0]) if linear else (*down.shape, up.shape[1])
    return LOW_RANK.pack(tokens, *shape, between, x, *tensors, int(linear), middle, out)
