"""Gated DeltaNet's heads (Yang et al., arXiv 2412.06464; in Qwen3-Next and Olmo Hybrid).

    log decay = -A softplus(x W_a + dt_bias)      one per head and token
    gate      = silu(x W_g)

The rest is :mod:`wuneng.layers.state._delta_rule`. As published, read vector, key and value pass a
short convolution (``state_short_conv: 4``) in place of a token shift.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from wuneng.kinds import register
from wuneng.layers.state._delta_rule import DecayRate, DeltaRule
from wuneng.ops import LinearPair


@register("state", "gated_delta")
class GatedDelta(DeltaRule):
    """A delta rule whose state decays as a whole."""

    context_parallel = in_one_call = True

    def add_decay_and_gate(self, config: Any) -> None:
        self.a_proj = nn.Linear(config.hidden_size, self.heads, bias=False)
        DecayRate.add(self, self.heads, self.heads)
        if config.state_output_gate:
            self.g_proj = nn.Linear(config.hidden_size, self.width, bias=False)

    def log_decay(self, x: Tensor) -> Tensor:
        return DecayRate.of(self, self.a_proj(x).unsqueeze(-1))

    def gate(self, x: Tensor) -> Tensor:
        return nn.functional.silu(self.g_proj(x))

    def decay_weights(self) -> tuple[LinearPair | None, Tensor | None]:
        return None, self.a_proj.weight

    def gate_weights(self) -> tuple[LinearPair | None, Tensor | None]:
        return None, self.g_proj.weight if self.config.state_output_gate else None

    def initialise(self, config: Any) -> None:
        DecayRate.initialise(self)
        super().initialise(config)
