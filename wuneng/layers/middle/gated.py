"""Gated fusion (our reading of arXiv 2504.19191): a gate of both weighs one against the other.

g = sigma([A^g; R] W_g + b_g)    Mid = g * A^g + (1 - g) * R
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from wuneng.kinds import register
from wuneng.layers.middle.base import MiddleHeads
from wuneng.ops.cross_head import gated


@register("middle", "gated")
class Gated(MiddleHeads):
    """W_g ``[S, 2 N, N]`` and b_g ``[S, N]``, a matrix and a bias per middle head."""

    matrices = frozenset({"gate_weight"})
    groups: ClassVar = {"gate_weight": "decay"}
    operator = "gated"
    context_parallel = True

    def add_weights(self) -> None:
        self.gate_weight = nn.Parameter(torch.empty(self.heads, 2 * self.head_dim, self.head_dim))
        self.gate_bias = nn.Parameter(torch.zeros(self.heads, self.head_dim))

    def initialise_weights(self, config: Any) -> None:
        init.normal_(self.gate_weight, std=config.initializer_range)
        init.zeros_(self.gate_bias)

    def formula(self, A: Tensor, grouped: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
        return gated(A, grouped, R, self.gate_weight, self.gate_bias)

    def operator_weights(self) -> tuple[Tensor, Tensor | None]:
        return self.gate_weight, self.gate_bias
