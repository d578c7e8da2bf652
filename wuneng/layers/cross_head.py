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
``[lambda * R; Mid] W_branch`` to attention's own ``A' W_o``. All but the projections is one
operator, :func:`wuneng.ops.cross_head`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wuneng.layers.norms import HeadRMSNorm
from wuneng.layers.plain_modules import is_plain
from wuneng.ops import cross_head
from wuneng.ops.cross_head import cross_head_reference


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
        if self.kind == "none" or attention is None:
            scaled = state * self.scale[:, None].to(state.dtype)
            return attention, self.branch_proj(scaled.flatten(-2))
        attention, branch = self.interaction(attention, state)
        return attention, self.branch_proj(branch)

    def _kind_weights(self) -> tuple[Tensor, Tensor | None]:
        """``first`` and ``second`` of :func:`wuneng.ops.cross_head`."""
        if self.kind == "additive":
            return self.alpha, self.beta
        if self.kind == "gated":
            return self.gate_weight, self.gate_bias
        return self.mid_weight, None

    def can_be_read(self) -> bool:
        """Whether this is nothing but its weights: nobody watches or replaced a part."""
        return (
            is_plain(self, CrossHead)
            and is_plain(self.branch_proj, nn.Linear)
            and is_plain(self.group_norm, HeadRMSNorm)
        )

    def token_weights(self) -> tuple[Any, ...]:
        """Scale, mix, norm, the kind's two and the branch, as a decoded token's call takes them.

        For a module that :meth:`can_be_read`.
        """
        return (
            self.scale,
            self.group_mix,
            self.group_norm.weight,
            *self._kind_weights(),
            self.branch_proj.weight,
        )

    def interaction(
        self, attention: Tensor, state: Tensor, backend: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """A' ``[B, T, H * N]`` and ``[lambda * R; Mid]`` ``[B, T, 2 * S * N]``, not projected."""
        A = attention.unflatten(-1, (self.attention_heads, self.head_dim))
        first, second = self._kind_weights()
        norm, mixed = self.group_norm, (self.kind, A, state, self.scale, self.group_mix)
        if not is_plain(norm, HeadRMSNorm):
            return cross_head_reference(*mixed, None, first, second, 0.0, normalise=norm)
        return cross_head(*mixed, norm.weight, first, second, eps=norm.eps, backend=backend)
