"""Additive modulation (our reading of arXiv 2504.19191), which changes attention's heads as well.

A' = A + alpha * up(R)           Mid = A^g + beta * R
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from wuneng.kinds import register
from wuneng.layers.middle.base import MiddleHeads
from wuneng.ops.cross_head import additive


@register("middle", "additive")
class Additive(MiddleHeads):
    """alpha ``[H, N]`` and beta ``[S, N]``."""

    operator = "additive"
    context_parallel = True

    def add_weights(self) -> None:
        self.alpha = nn.Parameter(torch.zeros(self.attention_heads, self.head_dim))
        self.beta = nn.Parameter(torch.ones(self.heads, self.head_dim))

    def initialise_weights(self, config: Any) -> None:
        # alpha starts at zero, so that grafted heads leave attention's own output alone
        init.zeros_(self.alpha)
        init.ones_(self.beta)

    def formula(self, A: Tensor, grouped: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
        return additive(A, grouped, R, self.alpha, self.beta)

    def operator_weights(self) -> tuple[Tensor, Tensor | None]:
        return self.alpha, self.beta
