"""Token shift after projection: u_t + mu (u_{t-1} - u_t), with u_{-1} = 0.

One pass over ``[B, T, C]`` forward and four backward, against a concatenation, an interpolation
and their separate gradients when autograd does it. On CUDA each direction is one kernel
(``triton_kernels``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from wuneng.ops.backend import HAS_TRITON, candidates
from wuneng.ops.plain import are_plain
from wuneng.ops.token_shift.by_hand import token_shift_by_hand
from wuneng.ops.token_shift.reference import token_shift_reference


def token_shift(u: Tensor, mu: Tensor, *, backend: str | None = None) -> Tensor:
    """Mix each token with the one before it.

    Args:
        u: ``[B, T, C]``, every row one sequence from its first token on.
        mu: ``[C]``, 0 keeps the present token and 1 takes the one before; in u's dtype.
        backend: as :mod:`wuneng.ops.backend` says.

    Returns:
        ``[B, T, C]`` in u's dtype. Differentiable once in both.
    """
    allowed = candidates("token_shift", u.device, backend)
    # A compiler fuses the plain form by itself, and a tensor subclass knows torch's operations.
    if "chunked" not in allowed or torch.compiler.is_compiling() or not are_plain(u, mu):
        return token_shift_reference(u, mu)
    if "triton" in allowed and HAS_TRITON and u.is_cuda:
        from wuneng.ops.token_shift import triton_kernels

        if triton_kernels.takes(u, mu):
            return triton_kernels.token_shift_triton(u, mu)
    return token_shift_by_hand(u, mu)
