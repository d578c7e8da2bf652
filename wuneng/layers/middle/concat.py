"""Concatenation (our reading of arXiv 2504.19191): a matrix per head over both.

Mid = [A^g; R] W_m
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from wuneng.kinds import register
from wuneng.layers.middle.base import MiddleHeads
from wuneng.ops.cross_head import concat


@register("middle", "concat")
class Concat(MiddleHeads):
    """W_m ``[S, 2 N, N]``."""

    matrices = frozenset({"mid_weight"})
    groups: ClassVar = {"mid_weight": "decay"}
    operator = "concat"
    context_parallel = True

    def add_weights(self) -> None:
        self.mid_weight = nn.Parameter(torch.empty(self.heads, 2 * self.head_dim, self.head_dim))

    def initialise_weights(self, config: Any) -> None:
        init.normal_(self.mid_weight, std=(2 * self.head_dim) ** -0.5)

    def formula(self, A: Tensor, grouped: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
        return concat(A, grouped, R, self.mid_weight, None)

    def operator_weights(self) -> tuple[Tensor, Tensor | None]:
        return self.mid_weight, None
