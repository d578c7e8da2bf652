"""The C kernels' argument block: eight bytes a field, in the order of ``state_head.h``."""

from __future__ import annotations

import struct

import torch
from torch import Tensor

_FORWARD = struct.Struct("=6q2d14q8q7q2q2q2q")
_BACKWARD = struct.Struct("=16q3q")
NO_BACKWARD = bytes(_BACKWARD.size)
Rows = tuple[int, int]  # address (0: absent) and floats between two tokens
ABSENT: Rows = (0, 0)


def rows_of(x: Tensor) -> tuple[Tensor, Rows]:
    """``x`` as float32 tokens with unit stride inside, and where it lies.

    Args:
        x: ``[B, T, C]`` or ``[B, T, S, N]``, of a floating dtype.

    Returns:
        The tensor that the address belongs to (``x`` itself wherever its strides allow), its Rows.
    """
    if x.dtype != torch.float32:
        x = x.float()
    batch, tokens = x.shape[0], x.shape[1]
    strides = x.stride()
    inner = strides[-1] == 1 and (len(strides) == 3 or strides[2] == x.shape[3])
    row = strides[1] if tokens > 1 else strides[0]
    if not inner or (tokens > 1 and batch > 1 and strides[0] != tokens * row):
        x = x.contiguous()
        row = x.stride(1)
    return x, (x.data_ptr(), row)


def address(x: Tensor | None) -> int:
    """Of a contiguous float32 or int64 tensor; 0 for none."""
    return 0 if x is None else x.data_ptr()


def forward_block(
    sizes: tuple[int, int, int, int],
    bounds: int,
    mode: tuple[bool, float, float],
    inputs: tuple[Rows, ...],
    weights: tuple[int, ...],
    carry: tuple[int, ...],
    states: tuple[int, int],
    out: Rows,
    boundaries: tuple[int, int],
) -> bytes:
    """The fields that the forward kernel reads.

    Args:
        sizes: sequences, heads, threads, chunk.
        bounds: address of ``[sequences + 1]`` int64.
        mode: raw, a_max, norm_eps.
        inputs: r, w, k, v, a, b, gate.
        weights: mu_r, mu_k, mu_v, k_k, k_a, bonus, norm_weight, norm_bias.
        carry: of r, k, v, where to leave the next call's, and the floats between two sequences.
        states: initial (0: zero) and final.
        boundaries: kept states and each sequence's first row of them.
    """
    flat = [value for rows in inputs for value in rows]
    return _FORWARD.pack(*sizes, bounds, *mode, *flat, *weights, *carry, *states, *out, *boundaries)


def backward_block(gradients: tuple[Rows, ...], states: tuple[int, int], weights: int) -> bytes:
    """What follows for the backward kernel.

    Args:
        gradients: of out, r, w, k, v, a, b, gate.
        states: gradient of the final state (0: zero) and of the initial one.
        weights: ``[sequences, 8, heads, N]``, parts of the weights' gradients.
    """
    return _BACKWARD.pack(*[value for rows in gradients for value in rows], *states, weights)
