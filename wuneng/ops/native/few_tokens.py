"""One or a few decoded tokens through C, where dispatching torch operators costs the most.

Nothing here is differentiated. ``takes`` says whether a call may come this way; the operators that
ask (:mod:`wuneng.ops.low_rank`, :mod:`wuneng.ops.cross_head`) have their plain forms beside them.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wuneng.ops.head_arguments import MiddleTensors
from wuneng.ops.native.compiler import HEAD_SIZES, library
from wuneng.ops.plain import are_plain

PRODUCT = struct.Struct("=6q")
LOW_RANK = struct.Struct("=11q")
CROSS_HEAD = struct.Struct("=5qd9q")
KINDS = {"additive": 0, "gated": 1, "concat": 2}
#: Multiplications up to which one thread's loops beat torch's products and their dispatch.
MOST_PRODUCTS = 2**18


def takes(size: int, products: int, *tensors: Tensor | None) -> bool:
    """Whether these tensors (contiguous float32 on the CPU, no gradients) go through C.

    Args:
        size: the head size that the kernels are built for.
        products: multiplications of the call.
    """
    if products > MOST_PRODUCTS or size not in HEAD_SIZES or torch.compiler.is_compiling():
        return False
    graded = torch.is_grad_enabled()
    for x in tensors:
        if x is not None and (
            x.dtype != torch.float32
            or not are_plain(x)
            or x.device.type != "cpu"
            or not x.is_contiguous()
            or (graded and x.requires_grad)
        ):
            return False
    return not torch.is_autocast_enabled("cpu") and library(size) is not None


@lru_cache
def _kernels(size: int) -> Any:
    kernels = library(size)
    assert kernels is not None
    for kernel in (kernels.low_rank, kernels.projections, kernels.cross_head):
        kernel.restype = None
    return kernels


class LowRank(NamedTuple):
    """Weights of bias + middle(x down) up: ``[D, rank]``, ``[rank, C]``, ``[C]``."""

    down: Tensor
    up: Tensor
    bias: Tensor


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
    r = torch.empty(batch, tokens, width)
    addresses = (x.data_ptr(), receptance.data_ptr(), r.data_ptr())
    product = PRODUCT.pack(batch * tokens, inner, width, *addresses)
    decay_block, w, decay_middle = _low_rank_block(x, decay, True)
    rate_block, a, rate_middle = _low_rank_block(x, rate, False)
    _kernels(size).projections(product, decay_block, rate_block)
    del decay_middle, rate_middle
    return r, w, a


def _low_rank_block(x: Tensor, weights: LowRank, tanh: bool) -> tuple[bytes, Tensor, Tensor]:
    """The argument block, the output, and working memory that must outlive the call."""
    down, up, bias = weights
    batch, tokens, inner = x.shape
    rank, width = up.shape
    out, middle = torch.empty(batch, tokens, width), torch.empty(rank)
    addresses = [u.data_ptr() for u in (x, down, up, bias, middle, out)]
    return LOW_RANK.pack(batch * tokens, inner, rank, width, tanh, *addresses), out, middle


def cross_head(kind: str, *tensors: *MiddleTensors, eps: float) -> tuple[Tensor, Tensor]:
    """Arguments and results of :func:`wuneng.ops.cross_head`."""
    A, R, scale = tensors[:3]
    batch, tokens, heads, size = A.shape
    state_heads = R.shape[2]
    changed = torch.empty(batch, tokens, heads * size) if kind == "additive" else A.flatten(-2)
    branch = torch.empty(batch, tokens, 2 * state_heads * size)
    block = CROSS_HEAD.pack(
        *(batch * tokens, heads, state_heads, KINDS[kind], scale.numel(), eps),
        *[0 if u is None else u.data_ptr() for u in tensors],
        *(changed.data_ptr(), branch.data_ptr()),
    )
    _kernels(size).cross_head(block)
    return changed, branch
