"""Kimi Delta Attention's heads (Kimi Team, arXiv 2510.26692; in Kimi Linear).

    log decay = -A softplus(x W_f1 W_f2 + dt_bias)      one per channel and token
    gate      = sigma(x W_g1 W_g2 + b_g)

The rest is :mod:`wuneng.layers.state._delta_rule`. The ranks are ``decay_rank`` and ``gate_rank``;
as published they are the head size, and read vector, key and value pass a short convolution
(``state_short_conv: 4``) in place of a token shift.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wuneng.kinds import register
from wuneng.layers.state._delta_rule import DecayRate, DeltaRule
from wuneng.ops import LinearPair


@register("state", "kda")
class KDA(DeltaRule):
    """A delta rule in which every channel of the state has a decay of its own."""

    context_parallel = in_one_call = True
    gate_sigmoids = ("output",)

    def add_decay_and_gate(self, config: Any) -> None:
        size = config.hidden_size
        self.f_down = nn.Linear(size, config.decay_rank, bias=False)
        self.f_up = nn.Linear(config.decay_rank, self.width, bias=False)
        DecayRate.add(self, self.heads, self.width)
        if config.state_output_gate:
            self.g_down = nn.Linear(size, config.gate_rank, bias=False)
            self.g_up = nn.Linear(config.gate_rank, self.width, bias=True)

    def log_decay(self, x: Tensor) -> Tensor:
        logit = self.f_up(self.f_down(x))
        return DecayRate.of(self, logit.unflatten(-1, (self.heads, self.head_dim)))

    def gate(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.g_up(self.g_down(x)))

    def decay_weights(self) -> tuple[LinearPair | None, Tensor | None]:
        return LinearPair(self.f_down.weight, self.f_up.weight, None), None

    def gate_weights(self) -> tuple[LinearPair | None, Tensor | None]:
        if not self.config.state_output_gate:
            return None, None
        return LinearPair(self.g_down.weight, self.g_up.weight, self.g_up.bias), None

    def initialise(self, config: Any) -> None:
        DecayRate.initialise(self)
        super().initialise(config)
