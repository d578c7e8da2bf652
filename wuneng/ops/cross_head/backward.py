"""The cross-head interaction by hand: its backward pass.

With dS and dM the halves of the branch's gradient, and the forward's names
(:mod:`wuneng.ops.cross_head.forward`)::

    dz = -dM E g (1 - g)         db_g = sum dz                                (gated)
    dz = dM                                                                   (concat)
    u  = g dM | 0 | dM           the part of dA^g that comes from no matrix
    dR = lambda dS + (dM - u) + dz W_2^T            (gated; concat without dM - u)
    dR = lambda dS + beta dM + up^T(alpha dA')      (additive)
    dA^g = u + dz W_1^T          dw = sum xhat dA^g
    dx = (w dA^g - xhat mean(w xhat dA^g)) / rms
    dW = [diag(w) sum xhat^T dz; sum R^T dz]
    dA_j = dA'_j + mix_j dx      dmix_j = sum dx A_j
"""

from __future__ import annotations

import torch
from torch import Tensor

from wuneng.ops.cross_head.forward import Weights, up


class Gradients:
    """Gradients of all tensor arguments, filled and summed tile by tile."""

    def __init__(self, A: Tensor, R: Tensor, weights: Weights) -> None:
        self.A, self.R, self.weights = A, R, weights
        size = weights.norm.shape[-1]
        self.dA, self.dR = A.new_empty(A.shape), R.new_empty(R.shape)
        self.d_scale, self.d_norm = (torch.zeros_like(weights.norm) for _ in range(2))
        self.d_alpha_or_matrix = torch.zeros_like(weights.alpha_or_matrix)
        self.d_beta_or_bias = (
            None if weights.beta_or_bias is None else torch.zeros_like(weights.beta_or_bias)
        )
        self.scale = weights.scale_by_channel()
        self.per_head = weights.mix.view(A.shape[1], -1, 1)  # [K, G * Q, 1]
        self.d_mix = A.new_zeros(*self.per_head.shape[:2], size)
        #: ``[S * N, S]``: the sums over each head, times w, as one matrix product.
        self.sums = torch.block_diag(*weights.norm.unbind()).t().mul_(-1 / size)
        if weights.kind != "additive":
            turned = weights.alpha_or_matrix.transpose(1, 2)
            self.above, self.below = turned[..., :size], turned[..., size:]
            self.d_above, self.d_below = (
                self.d_alpha_or_matrix[:, :size],
                self.d_alpha_or_matrix[:, size:],
            )

    def add(
        self, tile: slice, kept: list[Tensor], d_attention: Tensor | None, d_branch: Tensor
    ) -> None:
        """One tile: what :func:`forward` kept of it and the gradients of its two outputs."""
        R, dR, (dS, dM) = self.R[tile], self.dR[tile], d_branch.unbind(1)
        self.d_scale.add_((dS * R).sum(0))
        xhat, rstd, *gate = kept
        if gate:
            d_grouped = self._gated(xhat, R, gate[0], dS, dM, dR)
        elif self.weights.kind == "concat":
            torch.mul(dS, self.scale, out=dR)
            d_grouped = torch.empty_like(xhat)
            self._matrix(xhat, R, dM, d_grouped, dR, beta=0, sign=1)
        else:
            assert d_attention is not None
            self._additive(R, dS, dM, d_attention, dR)
            d_grouped = dM
        product = d_grouped * xhat
        self.d_norm.add_(product.sum(0))
        along = torch.mm(product.flatten(1), self.sums).unsqueeze(-1)
        dx = torch.mul(d_grouped, self.weights.norm, out=product)
        dx.addcmul_(xhat, along).mul_(rstd)
        self._group(tile, dx.unflatten(1, (self.A.shape[1], -1)), d_attention)

    def _additive(self, R: Tensor, dS: Tensor, dM: Tensor, d_attention: Tensor, dR: Tensor) -> None:
        beta = self.weights.beta_or_bias
        assert beta is not None
        assert self.d_beta_or_bias is not None
        torch.mul(dS, self.scale, out=dR).addcmul_(dM, beta)
        self.d_beta_or_bias.add_((dM * R).sum(0))
        groups, shared = d_attention.shape[1], R.shape[1] // d_attention.shape[1]
        alpha = self.weights.alpha_or_matrix.view(d_attention.shape[1:])
        self.d_alpha_or_matrix.view(alpha.shape).add_((d_attention * up(R, groups)).sum(0))
        by_group = dR.unflatten(1, (groups, shared))
        for j in range(alpha.shape[1]):
            one = slice(j, j + 1)
            by_group.addcmul_(d_attention[:, :, one], alpha[:, one], value=1 / shared)

    def _gated(
        self, xhat: Tensor, R: Tensor, gate: Tensor, dS: Tensor, dM: Tensor, dR: Tensor
    ) -> Tensor:
        less = torch.addcmul(R, xhat, self.weights.norm, value=-1)
        minus_dz = torch.ops.aten.sigmoid_backward(less.mul_(dM), gate)
        assert self.d_beta_or_bias is not None
        self.d_beta_or_bias.sub_(minus_dz.sum(0))
        d_grouped = torch.mul(gate, dM, out=less)
        torch.addcmul(dM, dS, self.scale, out=dR).sub_(d_grouped)
        self._matrix(xhat, R, minus_dz, d_grouped, dR, beta=1, sign=-1)
        return d_grouped

    def _matrix(
        self,
        xhat: Tensor,
        R: Tensor,
        dz: Tensor,
        d_grouped: Tensor,
        dR: Tensor,
        beta: int,
        sign: int,
    ) -> None:
        """Through the product with W; d_above is that of diag(w) W_1 until :meth:`of_weights`."""
        dz = dz.transpose(0, 1)
        d_grouped.transpose(0, 1).baddbmm_(dz, self.above, beta=beta, alpha=sign)
        dR.transpose(0, 1).baddbmm_(dz, self.below, alpha=sign)
        self.d_above.baddbmm_(xhat.permute(1, 2, 0), dz, alpha=sign)
        self.d_below.baddbmm_(R.permute(1, 2, 0), dz, alpha=sign)

    def _group(self, tile: slice, dx: Tensor, d_attention: Tensor | None) -> None:
        """From the gradient of the groups' means, ``[tile, K, Q, N]``, to A and mix."""
        self.d_mix.add_((self.A[tile] * dx).sum(0))
        dA = self.dA[tile]
        if dx.shape[2] > 1:
            torch.sum(dx * self.per_head, 2, keepdim=True, out=dA)
            if d_attention is not None:
                dA.add_(d_attention)
        elif d_attention is None:
            torch.mul(dx, self.per_head, out=dA)
        else:
            torch.addcmul(d_attention, dx, self.per_head, out=dA)

    def of_weights(self) -> tuple[Tensor | None, ...]:
        """Gradients of what is learned, as :class:`Weights` orders it, once all tiles are added."""
        weights = self.weights
        if weights.kind != "additive":
            self.d_above.mul_(weights.norm[..., None])
        d_scale = self.d_scale.sum(-1)
        if weights.scale.shape[0] < d_scale.shape[0]:
            d_scale = d_scale.sum(0, keepdim=True)
        d_mix = self.d_mix.sum(-1).view(weights.mix.shape)
        return d_scale, d_mix, self.d_norm, self.d_alpha_or_matrix, self.d_beta_or_bias
