"""A feed-forward layer of experts, as Qwen3-MoE has it: each token goes through the few that its
router likes best."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from wuneng.layers.layout import SequenceLayout

__all__ = ["MixtureOfExperts", "is_of_mixture"]

_MARK = "of_mixture"


class MixtureOfExperts(nn.Module):
    """transformers' own experts and router, under their names: ``experts.gate_up_proj`` ``[E, 2 F,
    D]``, ``experts.down_proj`` ``[E, D, F]`` and ``gate.weight`` ``[E, D]``.

    There is no auxiliary loss that would keep the experts evenly used: what starts from a trained
    model keeps them as they are.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        # Not at the top: it takes longer than all layers of the usual kinds.
        from transformers.models.qwen3_moe import modeling_qwen3_moe

        self.experts = modeling_qwen3_moe.Qwen3MoeExperts(config)
        self.gate = modeling_qwen3_moe.Qwen3MoeTopKRouter(config)
        for part in (self.experts, self.gate):
            part.__dict__[_MARK] = True

    def forward(self, x: Tensor, layout: SequenceLayout, carry: Any = None) -> Tensor:
        """``[B, T, D]`` to the same."""
        tokens = x.reshape(-1, x.shape[-1])
        _, weights, chosen = self.gate(tokens)
        said: Tensor = self.experts(tokens, chosen, weights)
        return said.reshape(x.shape)


def is_of_mixture(module: nn.Module) -> bool:
    """Whether it is the experts or the router of a mixture. Asked of them, and not of the layer,
    because transformers gives initial values to modules that hold parameters themselves."""
    return _MARK in module.__dict__
