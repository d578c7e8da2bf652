"""Token shift after projection: u_t + mu (u_{t-1} - u_t), with u_{-1} = 0.

One pass over ``[B, T, C]`` forward and four backward, against a concatenation, an interpolation
and their separate gradients when autograd does it. On CUDA each direction is one kernel
(``token_shift_triton``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wuneng.ops.backend import HAS_TRITON, candidates
from wuneng.ops.plain import are_plain


def token_shift_reference(u: Tensor, mu: Tensor) -> Tensor:
    """The equation as it stands, for plain autograd: the oracle of :func:`token_shift`."""
    return torch.lerp(u, torch.cat([torch.zeros_like(u[:, :1]), u[:, :-1]], dim=1), mu)


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
        from wuneng.ops import token_shift_triton

        if token_shift_triton.takes(u, mu):
            return token_shift_triton.token_shift_triton(u, mu)
    return _TokenShift.apply(u, mu)


class _TokenShift(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, mu: Tensor) -> Tensor:
        out = torch.empty_like(u, memory_format=torch.contiguous_format)
        out[:, :1] = u[:, :1] * (1 - mu)
        torch.lerp(u[:, 1:], u[:, :-1], mu, out=out[:, 1:])
        ctx.save_for_backward(u, mu)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        u, mu = ctx.saved_tensors
        du = gradient * (1 - mu)
        du[:, :-1].addcmul_(gradient[:, 1:], mu)
        difference = torch.neg(u)
        difference[:, 1:].add_(u[:, :-1])
        return du, difference.mul_(gradient).sum((0, 1), dtype=mu.dtype)
