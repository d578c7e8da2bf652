"""Cross-head interaction of one or a few tokens in C (``cross_head.c``), without gradients."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Any

from torch import Tensor

from wuneng.ops.head_arguments import MiddleTensors
from wuneng.ops.native.compiler import library
from wuneng.ops.native.memory import room

CROSS_HEAD = struct.Struct("=5qd9q")
#: The operator's kinds, and what a decoded token's calls take as well: none in the middle.
KINDS = {"additive": 0, "gated": 1, "concat": 2, "none": 3}


@lru_cache
def _kernels(size: int) -> Any:
    kernels = library(size)
    assert kernels is not None
    kernels.cross_head.restype = None
    return kernels


def cross_head(kind: str, *tensors: *MiddleTensors, eps: float) -> tuple[Tensor, Tensor]:
    """Arguments and results of :func:`wuneng.ops.cross_head`."""
    A, R, scale = tensors[:3]
    batch, tokens, heads, size = A.shape
    state_heads = R.shape[2]
    changed = room(batch, tokens, heads * size) if kind == "additive" else A.flatten(-2)
    branch = room(batch, tokens, 2 * state_heads * size)
    block = CROSS_HEAD.pack(
        *(batch * tokens, heads, state_heads, KINDS[kind], scale.numel(), eps),
        *[0 if u is None else u.data_ptr() for u in tensors],
        *(changed.data_ptr(), branch.data_ptr()),
    )
    _kernels(size).cross_head(block)
    return changed, branch
