"""The cross-head interaction by hand, as an operator of autograd: float32 or float64 throughout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wuneng.ops.cross_head.backward import Gradients
from wuneng.ops.cross_head.forward import FEW_NUMBERS, Weights, by_group, few_tokens, forward, tiles
from wuneng.ops.head_arguments import MiddleTensors


def cross_head_by_hand(kind: str, *tensors: *MiddleTensors, eps: float) -> tuple[Tensor, Tensor]:
    """Arguments and results of :func:`wuneng.ops.cross_head`, all of one dtype, 32 or 64 bits."""
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        return _CrossHead.apply(kind, *tensors, eps)
    A, R, scale, mix, norm, alpha_or_matrix, beta_or_bias = tensors
    weights = Weights(kind, scale, mix, norm, alpha_or_matrix, beta_or_bias, eps)
    if R.numel() <= FEW_NUMBERS:
        changed, branch = few_tokens(by_group(A, R), R.flatten(0, 1), weights)
    else:
        changed, branch, _ = forward(by_group(A, R), R.flatten(0, 1), weights, keep=False)
    return _attention_output(A, changed), branch.flatten(1).unflatten(0, R.shape[:2])


def _attention_output(A: Tensor, changed: Tensor | None) -> Tensor:
    return (A if changed is None else changed.view(A.shape)).flatten(-2)


class _CrossHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kind: str, A: Tensor, R: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        weights = Weights(kind, *others)
        changed, branch, kept = forward(by_group(A, R), R.flatten(0, 1), weights, keep=True)
        ctx.save_for_backward(A, R, *others[:5], *(x for tensors in kept for x in tensors))
        ctx.kind, ctx.eps, ctx.tiles = kind, weights.eps, tiles(R.flatten(0, 1))
        ctx.set_materialize_grads(False)
        return _attention_output(A, changed), branch.flatten(1).unflatten(0, R.shape[:2])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, d_attention: Tensor | None, d_branch: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        A, R, *others = ctx.saved_tensors
        (scale, mix, norm, alpha_or_matrix, beta_or_bias), kept = others[:5], others[5:]
        weights = Weights(ctx.kind, scale, mix, norm, alpha_or_matrix, beta_or_bias, ctx.eps)
        if d_branch is None:
            d_branch = R.new_zeros(*R.shape[:2], 2 * R.shape[2] * R.shape[3])
        if d_attention is None and ctx.kind == "additive":
            d_attention = torch.zeros_like(A).flatten(-2)
        if d_attention is not None:
            d_attention = by_group(d_attention.reshape(A.shape), R)
        d_branch = d_branch.flatten(0, 1).unflatten(1, (2, *R.shape[2:]))
        gradients = Gradients(by_group(A, R), R.flatten(0, 1), weights)
        per_tile = len(kept) // max(1, len(ctx.tiles))
        for index, tile in enumerate(ctx.tiles):
            own = kept[index * per_tile : (index + 1) * per_tile]
            gradients.add(
                tile, own, None if d_attention is None else d_attention[tile], d_branch[tile]
            )
        dA, dR = gradients.dA.view(A.shape), gradients.dR.view(R.shape)
        return (None, dA, dR, *gradients.of_weights(), None)
