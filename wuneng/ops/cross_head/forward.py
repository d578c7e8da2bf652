"""The cross-head interaction by hand: its forward pass, in as few passes as torch allows.

Plain autograd takes a dozen passes over ``[B, T, S, N]`` forward and twice as many backward. Three
things save most of them. The norm's weight w goes into the matrix, so that A^g is never made: with
xhat the norm's result before its weight, [A^g; R] W = xhat (diag(w) W_1) + R W_2, and
g A^g + (1 - g) R = R - g E with E = R - w xhat. Both halves of the branch are written where they
belong instead of being concatenated. And tokens are handled in tiles, so that what one operation
writes the next one finds in the cache.

Legend: M tokens of all sequences, S state heads, N head size, K = min(H, S) groups, each of G
attention heads and Q state heads, one of them 1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

#: Numbers of a tile's ``[tokens, S, N]``, per thread: half a MiB in float32, so that what
#: operations hand on stays in a core's own cache (measured best of 2^14 to 2^20).
TILE_NUMBERS = 2**17
#: But matrix products of fewer tokens would be slow ones.
FEWEST_TOKENS = 128
#: Up to here calls cost more than arithmetic, and without gradients fewer ones are made.
FEW_NUMBERS = 2**12


class Weights(NamedTuple):
    """What is learned, and the kind: shaped as :func:`wuneng.ops.cross_head` tells."""

    kind: str
    scale: Tensor
    mix: Tensor
    norm: Tensor
    alpha_or_matrix: Tensor
    beta_or_bias: Tensor | None
    eps: float

    def halves(self) -> tuple[Tensor, Tensor]:
        """diag(w) W_1, which multiplies xhat, and W_2, which multiplies R; each ``[S, N, N]``."""
        above, below = self.alpha_or_matrix.split(self.norm.shape[-1], dim=1)
        return above * self.norm[..., None], below

    def scale_by_channel(self) -> Tensor:
        """lambda ``[S, N]``: a row of its own for each head is read faster than a broadcast."""
        return self.scale[:, None].expand_as(self.norm).contiguous()


def few_tokens(A: Tensor, R: Tensor, weights: Weights) -> tuple[Tensor | None, Tensor]:
    """A' or None and the branch, in the fewest calls: they are what one token costs."""
    changed = None
    if A.shape[0] == 1 and A.shape[2] > 1:
        grouped = torch.bmm(weights.mix[:, None], A[0]).transpose(0, 1)
    else:
        grouped = _grouped(A, weights.mix)
    grouped = torch.rms_norm(grouped, grouped.shape[-1:], None, weights.eps) * weights.norm
    if weights.kind == "additive":
        assert weights.beta_or_bias is not None
        middle = torch.addcmul(grouped, weights.beta_or_bias, R)
        changed = torch.addcmul(A, weights.alpha_or_matrix.view(A.shape[1:]), up(R, A.shape[1]))
    elif weights.beta_or_bias is None:
        both = torch.cat([grouped, R], dim=-1).transpose(0, 1)
        middle = torch.bmm(both, weights.alpha_or_matrix).transpose(0, 1)
    else:
        both = torch.cat([grouped, R], dim=-1).transpose(0, 1)
        z = torch.baddbmm(weights.beta_or_bias[:, None], both, weights.alpha_or_matrix)
        middle = torch.lerp(R, grouped, z.sigmoid_().transpose(0, 1))
    return changed, torch.cat([R * weights.scale[:, None], middle], dim=1)


def by_group(A: Tensor, R: Tensor) -> Tensor:
    """A ``[B, T, H, N]`` as ``[M, K, G, N]``."""
    groups = min(A.shape[2], R.shape[2])
    return A.flatten(0, 1).unflatten(1, (groups, A.shape[2] // groups))


def tiles(R: Tensor) -> list[slice]:
    """Slices of R's M tokens."""
    tokens, width = R.shape[0], R.shape[1] * R.shape[2]
    step = max(FEWEST_TOKENS, TILE_NUMBERS * torch.get_num_threads() // width)
    return [slice(begin, min(begin + step, tokens)) for begin in range(0, tokens, step)]


def _grouped(A: Tensor, mix: Tensor) -> Tensor:
    """Sum of mix_j A_j: ``[M, S, N]`` from A ``[M, K, G, N]``."""
    mix = mix.view(A.shape[1], -1, A.shape[2], 1)
    total = A[:, :, :1] * mix[:, :, 0]
    for j in range(1, A.shape[2]):
        total.addcmul_(A[:, :, j : j + 1], mix[:, :, j])
    return total.flatten(1, 2)


def up(R: Tensor, groups: int) -> Tensor:
    """R ``[M, S, N]`` as one vector for each group ``[M, K, 1, N]``: itself or the mean of Q."""
    R = R.unflatten(1, (groups, -1))
    return R if R.shape[2] == 1 else R.mean(2, keepdim=True)


def forward(
    A: Tensor, R: Tensor, weights: Weights, keep: bool
) -> tuple[Tensor | None, Tensor, list[list[Tensor]]]:
    """A' or None where A stays, the branch ``[M, 2, S, N]``, and for each tile what is kept.

    Args:
        A: ``[M, K, G, N]``.
        R: ``[M, S, N]``.
        keep: whether there will be a backward pass.
    """
    changed = torch.empty_like(A) if weights.kind == "additive" else None
    branch = R.new_empty(R.shape[0], 2, *R.shape[1:])
    halves = None if changed is not None else weights.halves()
    scale = weights.scale_by_channel()
    kept: list[list[Tensor]] = []
    for tile in tiles(R):
        own, state, middle = A[tile], R[tile], branch[tile, 1]
        torch.mul(state, scale, out=branch[tile, 0])
        xhat = _grouped(own, weights.mix)
        norm = torch.linalg.vector_norm(xhat, dim=-1, keepdim=True)
        rstd = norm.square_().mul_(1 / xhat.shape[-1]).add_(weights.eps).rsqrt_()
        xhat.mul_(rstd)
        gate = None
        if changed is not None:
            assert weights.beta_or_bias is not None
            torch.mul(xhat, weights.norm, out=middle)
            middle.addcmul_(state, weights.beta_or_bias)
            alpha = weights.alpha_or_matrix.view(A.shape[1:])
            torch.addcmul(own, alpha, up(state, A.shape[1]), out=changed[tile])
        else:
            gate = _matrix_middle(xhat, state, middle, halves, weights)
        if keep:
            kept.append([x for x in (xhat, rstd, gate) if x is not None])
    return changed, branch, kept


def _matrix_middle(
    xhat: Tensor, R: Tensor, out: Tensor, halves: Any, weights: Weights
) -> Tensor | None:
    """Mid of ``gated`` and ``concat`` into ``out``; the gate ``[tile, S, N]``, if there is one."""
    above, below = halves
    if weights.beta_or_bias is None:
        product = out.transpose(0, 1)
        torch.bmm(xhat.transpose(0, 1), above, out=product)
        product.baddbmm_(R.transpose(0, 1), below)
        return None
    gate = torch.empty_like(xhat)
    z = gate.copy_(weights.beta_or_bias).transpose(0, 1)
    z.baddbmm_(xhat.transpose(0, 1), above).baddbmm_(R.transpose(0, 1), below)
    gate.sigmoid_()
    less = torch.addcmul(R, xhat, weights.norm, value=-1)
    torch.addcmul(R, gate, less, value=-1, out=out)
    return gate
