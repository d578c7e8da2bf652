"""Launches of ``triton_projection_kernels``: the recurrence's inputs, and gradients back."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from wuneng.ops.wkv7.triton_launch import on_device, processors, split_tiles
from wuneng.ops.wkv7.triton_projection_kernels import (
    projection_gradients_kernel,
    recurrence_inputs_kernel,
)

#: r, decay_logit, k, v and rate_logit; source, which may be absent; k_k and k_a.
Projections = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor]

ROWS = 16
"""Rows of a tile: 2 KB of bfloat16 at head size 64, eight channels a thread."""
WARPS = 4
PROGRAMS_PER_PROCESSOR = 16
"""Of the way back: enough to fill a GPU, few enough that partial sums are cheap."""


def recurrence_inputs_triton(
    *tensors: *Projections, a_max: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The log decay in float32; k~, a and b in k's dtype; all ``[B, T, S, N]``."""
    k = tensors[2]
    w = torch.empty_like(k, dtype=torch.float32, memory_format=torch.contiguous_format)
    key, a, b = (torch.empty_like(k, memory_format=torch.contiguous_format) for _ in range(3))
    rows, (heads, size) = k.shape[0] * k.shape[1], k.shape[2:]
    if k.numel():
        with on_device(k):
            recurrence_inputs_kernel[(triton.cdiv(rows, ROWS) * heads,)](
                *(*_read(tensors), w, key, a, b, rows, heads),
                **_constants(tensors, size, a_max),
            )
    return w, key, a, b


def projection_gradients_triton(
    *tensors: *Projections,
    a_max: float,
    given: tuple[Tensor, Tensor, Tensor, Tensor],
    d_key_read: Tensor | None,
    gradients: tuple[Tensor, Tensor, Tensor | None, Tensor],
    weight_gradients: tuple[Tensor, Tensor],
) -> None:
    """Write the gradients of decay_logit, k, source and rate_logit, and of k_k and k_a.

    ``given`` are those of w, k~, a and b, contiguous; ``d_key_read`` what reached k~ besides.
    """
    k = tensors[2]
    rows, (heads, size) = k.shape[0] * k.shape[1], k.shape[2:]
    if k.numel() == 0:
        for x in weight_gradients:
            x.zero_()
        return
    programs = PROGRAMS_PER_PROCESSOR * processors(k.device)
    tiles, programs = split_tiles(triton.cdiv(rows, ROWS), heads, programs)
    d_weights = k.new_empty(programs, 2, heads, size, dtype=torch.float32)
    d_key_read = None if d_key_read is None else d_key_read.contiguous()
    with on_device(k):
        projection_gradients_kernel[(programs * heads,)](
            *(*_read(tensors), *given, d_key_read, *gradients, d_weights, rows, heads, tiles),
            HAS_KEY_READ=d_key_read is not None,
            **_constants(tensors, size, a_max),
        )
    # A fixed order of summation: atomics would make gradients differ from run to run.
    for total, gradient in zip(d_weights.sum(0), weight_gradients, strict=True):
        gradient.copy_(total)


def _read(tensors: Projections) -> list[Tensor | None]:
    """What both kernels read, in their order."""
    _, decay_logit, k, _, rate_logit, source, k_k, k_a = tensors
    read = (decay_logit, k, source, rate_logit, k_k, k_a)
    return [None if x is None else x.contiguous() for x in read]


def _constants(tensors: Projections, size: int, a_max: float) -> dict[str, Any]:
    return {
        "SIZE": size,
        "ROWS": ROWS,
        "SHARED": tensors[5] is None,
        "A_MAX": a_max,
        "num_warps": WARPS,
    }
