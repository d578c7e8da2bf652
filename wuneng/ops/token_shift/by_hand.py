"""The token shift by hand: one pass forward, and a backward without a concatenation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def token_shift_by_hand(u: Tensor, mu: Tensor) -> Tensor:
    """Arguments and result of :func:`wuneng.ops.token_shift`, unchecked."""
    out: Tensor = _TokenShift.apply(u, mu)
    return out


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
