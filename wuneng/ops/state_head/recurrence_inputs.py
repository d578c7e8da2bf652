"""What the recurrence is fed: removal key, replacement key and in-context rate, in one operator.

    rate = sigma(logit)                     in-context learning rate before a_max
    kappa = normalise_head(source * k_k)    removal key, L2 over the head, eps 1e-12
    k~   = k * (1 + (rate - 1) * k_a)       replacement key
    a    = -kappa        b = a_max * rate * kappa

(RWKV-7; RWKV-LM's ``rwkv_v7_numpy.py``.) Written as a chain of autograd operations this is a dozen
passes over ``[B, T, S, N]`` forward and twice as many backward, all bound by memory; by hand it is
about half of each, and keeps five tensors instead of a dozen.

Legend: B batch, T tokens, S state heads, N head size.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from wuneng.ops.backend import candidates
from wuneng.ops.plain import are_plain

NORM_EPS = 1e-12
LOG_DECAY_SCALE = -math.exp(-0.5)  # log w = -e^{-1/2} sigma(.), so one step keeps at least 0.545


def log_decay(logit: Tensor) -> Tensor:
    """The recurrence's log decay w = -e^{-1/2} sigma(logit), as RWKV-7's.

    Args:
        logit: ``[..., N]``, floating.

    Returns:
        The shape of ``logit``, float32 (float64 for float64): a decay near 1 accumulates over
        thousands of tokens, where bfloat16 would round it away.
    """
    return LOG_DECAY_SCALE * torch.sigmoid(_wide(logit)(logit))


def recurrence_inputs_reference(
    k: Tensor, source: Tensor, logit: Tensor, k_k: Tensor, k_a: Tensor, a_max: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The equations as they stand, for plain autograd: the oracle of :func:`recurrence_inputs`."""
    rate = torch.sigmoid(logit)
    kappa = torch.nn.functional.normalize(source * k_k, dim=-1, eps=NORM_EPS)
    return k * (1 + (rate - 1) * k_a), -kappa, a_max * rate * kappa


def recurrence_inputs(
    k: Tensor,
    source: Tensor,
    logit: Tensor,
    k_k: Tensor,
    k_a: Tensor,
    a_max: float,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The keys that :func:`wuneng.ops.wkv7` is fed: k~, a and b, of keys and in-context rate.

    Args:
        k: keys ``[B, T, S, N]``.
        source: what the removal key is made of, ``[B, T, S, N]``: usually ``k`` itself.
        logit: of the in-context learning rate, ``[B, T, S, N]``.
        k_k, k_a: per-channel weights ``[S, N]``.
        a_max: upper end of the in-context learning rate, 1 or 2.
        backend: as :mod:`wuneng.ops.backend` says.

    Returns:
        k~, a = -kappa and b, each ``[B, T, S, N]`` in k's dtype; arithmetic is float32 (float64 for
        float64 inputs). Differentiable once in every tensor argument.
    """
    by_hand = "chunked" in candidates("recurrence_inputs", k.device, backend)
    # A compiler fuses the plain form by itself, and a tensor subclass knows torch's operations.
    plain = are_plain(k, source, logit, k_k, k_a) and not torch.compiler.is_compiling()
    if not (by_hand and plain):
        wide = _wide(k)
        replaced, a, b = recurrence_inputs_reference(
            wide(k), wide(source), wide(logit), wide(k_k), wide(k_a), a_max
        )
        return replaced.to(k.dtype), a.to(k.dtype), b.to(k.dtype)
    return _RecurrenceInputs.apply(k, source, logit, k_k, k_a, a_max)


class _RecurrenceInputs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, k: Tensor, source: Tensor, logit: Tensor, k_k: Tensor, k_a: Tensor, a_max: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = _wide(k)
        rate = torch.sigmoid(wide(logit))
        kappa = wide(source) * wide(k_k)
        norm = torch.linalg.vector_norm(kappa, dim=-1, keepdim=True).clamp_min_(NORM_EPS)
        kappa = kappa.div_(norm)
        a = torch.neg(kappa)
        b = rate * kappa
        if a_max != 1.0:
            b.mul_(a_max)
        replaced = torch.sub(rate, 1).mul_(wide(k_a)).add_(1).mul_(wide(k))
        ctx.save_for_backward(k, source, rate, kappa, norm, k_k, k_a)
        ctx.a_max = a_max
        ctx.logit_dtype = logit.dtype
        return replaced.to(k.dtype), a.to(k.dtype), b.to(k.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_replaced: Tensor, da: Tensor, db: Tensor) -> tuple[Any, ...]:
        k, source, rate, kappa, norm, k_k, k_a = ctx.saved_tensors
        wide = _wide(k)
        d_replaced, da, db, weight_a = wide(d_replaced), wide(da), wide(db), wide(k_a)
        if ctx.a_max != 1.0:
            db = db * ctx.a_max
        rate_less_one = rate - 1
        dk = torch.mul(rate_less_one, weight_a).add_(1).mul_(d_replaced)
        through_k = d_replaced * wide(k)
        d_ka = _to_weight(through_k * rate_less_one, k_a)
        # d rate, then through the sigmoid: rate (1 - rate) = -rate (rate - 1)
        d_rate = through_k.mul_(weight_a).addcmul_(db, kappa)
        d_logit = d_rate.mul_(rate).mul_(rate_less_one).neg_()
        d_kappa = torch.mul(db, rate).sub_(da)
        along = (d_kappa * kappa).sum(-1, keepdim=True)
        d_scaled = d_kappa.addcmul_(kappa, along, value=-1).div_(norm)
        d_kk = _to_weight(d_scaled * wide(source), k_k)
        d_source = d_scaled.mul_(wide(k_k))
        return (
            dk.to(k.dtype),
            d_source.to(source.dtype),
            d_logit.to(ctx.logit_dtype),
            d_kk,
            d_ka,
            None,
        )


def _wide(like: Tensor) -> Any:
    """A cast to the dtype that arithmetic runs in: float64 for float64, else float32."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return lambda x: x.to(dtype)


def _to_weight(gradient: Tensor, weight: Tensor) -> Tensor:
    return gradient.sum(dim=tuple(range(gradient.dim() - 2))).to(weight.dtype)
