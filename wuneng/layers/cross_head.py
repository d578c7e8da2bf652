"""Cross-head interaction: middle heads that mix attention and state, and the branch's output.

The abstract of arXiv 2504.19191 names concatenation, additive modulation and gated fusion; the
formulas here are **our reading** of it, and each can be chosen or switched off in a recipe.

Legend: H attention heads, S state heads, M = S middle heads, N head size, D model width::

    additive   A' = A + alpha * up(R)      Mid = A^g + beta * R
    gated      g = sigma([A^g; R] W_g + b_g)    Mid = g * A^g + (1 - g) * R
    concat     Mid = [A^g; R] W_m
    none       no middle heads

A^g is each group's mean of attention heads under a learned mix, RMS-normalised; R arrives
group-normalised (their magnitudes differ: arXiv 2411.13676). The block adds
``[lambda * R; Mid] W_branch`` to attention's own ``A' W_o``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wuneng.layers.norms import HeadRMSNorm


class CrossHead(nn.Module):
    """Mixes R with attention's heads and projects what is new back to the model's width."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.kind = config.cross_head
        heads, dim = config.num_state_heads, config.state_head_dim
        self.heads, self.head_dim = heads, dim
        self.attention_heads = config.num_attention_heads
        scales = heads if config.state_output_scale == "head" else 1
        self.scale = nn.Parameter(torch.ones(scales))
        if self.kind != "none":
            self.group_size = max(1, self.attention_heads // heads)
            self.group_mix = nn.Parameter(torch.empty(heads, self.group_size))
            self.group_norm = HeadRMSNorm(heads, dim, config.rms_norm_eps)
        if self.kind == "additive":
            self.alpha = nn.Parameter(torch.zeros(self.attention_heads, dim))
            self.beta = nn.Parameter(torch.ones(heads, dim))
        elif self.kind == "gated":
            self.gate_weight = nn.Parameter(torch.empty(heads, 2 * dim, dim))
            self.gate_bias = nn.Parameter(torch.zeros(heads, dim))
        elif self.kind == "concat":
            self.mid_weight = nn.Parameter(torch.empty(heads, 2 * dim, dim))
        branches = 1 if self.kind == "none" else 2
        self.branch_proj = nn.Linear(branches * heads * dim, config.hidden_size, bias=False)

    def forward(self, attention: Tensor | None, state: Tensor) -> tuple[Tensor | None, Tensor]:
        """Mix.

        Args:
            attention: A ``[B, T, H * N]``, None without attention heads.
            state: R ``[B, T, S, N]``.

        Returns:
            A' ``[B, T, H * N]`` for attention's output projection, and the branch's own
            contribution to the residual stream ``[B, T, D]``.
        """
        scaled = state * self.scale[:, None].to(state.dtype)
        if self.kind == "none" or attention is None:
            return attention, self.branch_proj(scaled.flatten(-2))
        A = attention.unflatten(-1, (self.attention_heads, self.head_dim))
        middle = self._middle(self.group_norm(self._grouped(A)), state)
        if self.kind == "additive":
            attention = (A + self.alpha.to(A.dtype) * self._up(state)).flatten(-2)
        branch = torch.cat([scaled.flatten(-2), middle.flatten(-2)], dim=-1)
        return attention, self.branch_proj(branch)

    def _grouped(self, A: Tensor) -> Tensor:
        """A^g ``[B, T, S, N]``: the learned mean of each state head's attention heads."""
        mix = self.group_mix.to(A.dtype)
        if self.attention_heads < self.heads:
            A = A.repeat_interleave(self.heads // self.attention_heads, dim=-2)
        grouped = A.unflatten(-2, (self.heads, self.group_size))
        if self.group_size == 1:
            return grouped.squeeze(-2) * mix
        return (grouped * mix[..., None]).sum(-2)

    def _up(self, R: Tensor) -> Tensor:
        """R ``[B, T, S, N]`` spread over the H attention heads."""
        if self.attention_heads >= self.heads:
            return R.repeat_interleave(self.group_size, dim=-2)
        return R.unflatten(-2, (self.attention_heads, -1)).mean(-2)

    def _middle(self, grouped: Tensor, R: Tensor) -> Tensor:
        """Mid ``[B, T, S, N]``."""
        if self.kind == "additive":
            return grouped + self.beta.to(R.dtype) * R
        both = torch.cat([grouped, R], dim=-1)
        if self.kind == "concat":
            return _per_head(both, self.mid_weight)
        gate = torch.sigmoid(_per_head(both, self.gate_weight) + self.gate_bias.to(R.dtype))
        return torch.lerp(R, grouped.to(R.dtype), gate.to(R.dtype))


def _per_head(x: Tensor, weight: Tensor) -> Tensor:
    """``[B, T, S, I]`` by ``[S, I, J]``: a matrix product of each head with its own weight."""
    flat = x.flatten(0, 1).transpose(0, 1)
    return torch.bmm(flat, weight.to(x.dtype)).transpose(0, 1).unflatten(0, x.shape[:2])
