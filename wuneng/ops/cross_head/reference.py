"""The cross-head interaction's equations as they stand, for plain autograd: one for each kind.

Legend: B batch, T tokens, H attention heads, S state heads, N head size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def cross_head_reference(
    kind: str,
    A: Tensor,
    R: Tensor,
    scale: Tensor,
    group_mix: Tensor,
    group_norm: Tensor | None,
    alpha_or_matrix: Tensor,
    beta_or_bias: Tensor | None,
    eps: float,
    normalise: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The equations as they stand, for plain autograd: the oracle of :func:`cross_head`.

    ``normalise``: what is applied to A^g ``[B, T, S, N]`` in place of the RMS norm of these
    ``group_norm`` and ``eps``.
    """
    if kind not in FORMULAS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    mean = grouped_heads(A, group_mix, R.shape[-2])
    if normalise is not None:
        grouped = normalise(mean)
    else:
        assert group_norm is not None
        grouped = _normalised(mean, group_norm, eps)
    A, middle = FORMULAS[kind](A, grouped, R, alpha_or_matrix, beta_or_bias)
    scaled = R * scale[:, None].to(R.dtype)
    return A.flatten(-2), torch.cat([scaled.flatten(-2), middle.flatten(-2)], dim=-1)


def grouped_heads(A: Tensor, mix: Tensor, heads: int) -> Tensor:
    """``[B, T, S, N]``: the learned mean of each state head's attention heads."""
    mix = mix.to(A.dtype)
    if A.shape[-2] < heads:
        A = A.repeat_interleave(heads // A.shape[-2], dim=-2)
    if A.shape[-2] == heads:
        return A * mix
    return (A.unflatten(-2, (heads, -1)) * mix[..., None]).sum(-2)


def _normalised(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm of each head, as :class:`wuneng.layers.norms.HeadRMSNorm`."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def _up(R: Tensor, attention_heads: int) -> Tensor:
    """R ``[B, T, S, N]`` spread over the H attention heads."""
    heads = R.shape[-2]
    if attention_heads >= heads:
        return R.repeat_interleave(attention_heads // heads, dim=-2)
    return R.unflatten(-2, (attention_heads, -1)).mean(-2)


def additive(
    A: Tensor, grouped: Tensor, R: Tensor, alpha: Tensor, beta: Tensor | None
) -> tuple[Tensor, Tensor]:
    """A' ``[B, T, H, N]`` and Mid ``[B, T, S, N]``; alpha ``[H, N]``, beta ``[S, N]``."""
    assert beta is not None
    return A + alpha.to(A.dtype) * _up(R, A.shape[-2]), grouped + beta.to(R.dtype) * R


def gated(
    A: Tensor, grouped: Tensor, R: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """A itself and Mid ``[B, T, S, N]``; W_g ``[S, 2 N, N]``, b_g ``[S, N]``."""
    assert bias is not None
    both = torch.cat([grouped, R], dim=-1)
    gate = torch.sigmoid(_per_head(both, weight) + bias.to(R.dtype))
    return A, torch.lerp(R, grouped.to(R.dtype), gate.to(R.dtype))


def concat(
    A: Tensor, grouped: Tensor, R: Tensor, weight: Tensor, unused: None
) -> tuple[Tensor, Tensor]:
    """A itself and Mid ``[B, T, S, N]``; W_m ``[S, 2 N, N]``."""
    return A, _per_head(torch.cat([grouped, R], dim=-1), weight)


def _per_head(x: Tensor, weight: Tensor) -> Tensor:
    """``[B, T, S, I]`` by ``[S, I, J]``: a matrix product of each head with its own weight."""
    flat = x.flatten(0, 1).transpose(0, 1)
    return torch.bmm(flat, weight.to(x.dtype)).transpose(0, 1).unflatten(0, x.shape[:2])


FORMULAS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "additive": additive,
    "gated": gated,
    "concat": concat,
}

KINDS = tuple(FORMULAS)
