"""From the raw state read to what a state head hands on, in one operator.

    z = groupnorm_head(y) * weight + bias           RWKV-7's ``ln_x``; statistics float32
    c = sum_n r * k~ * r_k                          the bonus for the present token
    R = (z + c v) * gate

(RWKV-7; RWKV-LM's ``rwkv_v7_numpy.py``. The norm, the bonus and the gate can each be absent.) As a
chain of autograd operations this is eight passes over ``[B, T, S, N]`` forward and keeps as many
tensors; by hand the backward pass needs r, k~, v, the normalised read and, with a gate, what it
multiplied. On CUDA each direction is one kernel (``triton_kernels``).

Legend: B batch, T tokens, S state heads, N head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wuneng.ops.backend import HAS_TRITON, candidates
from wuneng.ops.plain import are_plain
from wuneng.ops.readout.by_hand import state_readout_by_hand, wide
from wuneng.ops.readout.reference import state_readout_reference


def state_readout(
    y: Tensor,
    r: Tensor,
    key: Tensor,
    v: Tensor,
    *,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float,
    bonus: Tensor | None,
    gate: Tensor | None,
    backend: str | None = None,
) -> Tensor:
    """Group norm, bonus and output gate.

    Args:
        y: what was read from the state, ``[B, T, S, N]``.
        r, key, v: read vectors, replacement keys k~ and values, ``[B, T, S, N]``; r, key and v are
            read only where there is a bonus (v's dtype always counts).
        norm_weight, norm_bias: per-channel ``[S, N]``; both None leaves y as it is.
        norm_eps: added to the variance, inside the root.
        bonus: r_k ``[S, N]``, or None.
        gate: ``[B, T, S, N]``, or None.
        backend: as :mod:`wuneng.ops.backend` says.

    Returns:
        R ``[B, T, S, N]`` in v's dtype; arithmetic is float32 (float64 where y is float64).
        Differentiable once in every tensor argument.

    Raises:
        ValueError: one of ``norm_weight`` and ``norm_bias`` without the other.
    """
    if (norm_weight is None) != (norm_bias is None):
        missing = "norm_weight" if norm_weight is None else "norm_bias"
        raise ValueError(f"{missing} is missing: give norm_weight and norm_bias together")
    arguments = (y, r, key, v, norm_weight, norm_bias, bonus, gate)
    plain = are_plain(*arguments)
    allowed = candidates("readout", y.device, backend)
    if "triton" in allowed and HAS_TRITON and y.is_cuda and plain:
        from wuneng.ops.readout import triton_kernels

        if triton_kernels.takes(*arguments):
            return triton_kernels.state_readout_triton(*arguments, norm_eps=norm_eps)
    # A compiler fuses the plain form by itself, and a tensor subclass knows torch's operations.
    if "chunked" not in allowed or torch.compiler.is_compiling() or not plain:
        wider = (wide(x, y) for x in arguments)
        return state_readout_reference(*wider, norm_eps=norm_eps).to(v.dtype)
    return state_readout_by_hand(*arguments, eps=norm_eps)
