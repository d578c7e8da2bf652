"""From last hidden states to logits: the output projection, and what a model does to its logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ScaledLogits", "has_plain_logits", "scaled_logits"]


def has_plain_logits(config: Any) -> bool:
    """Whether logits are what ``lm_head`` makes, and nothing else."""
    return bool(config.logits_scaling == 1.0 and config.logit_softcap is None)


def scaled_logits(logits: Tensor, config: Any) -> Tensor:
    """The model's logits, from those of ``lm_head``, ``[..., vocab]``: over ``logits_scaling``, and
    within ``logit_softcap``."""
    if config.logits_scaling != 1.0:
        logits = logits / config.logits_scaling
    if config.logit_softcap is not None:
        logits = torch.tanh(logits / config.logit_softcap) * config.logit_softcap
    return logits


class ScaledLogits(nn.Module):
    """The head of a model whose logits are not plain, for those who are handed a head to call.

    Not a part of the model: ``lm_head`` stays the layer that others tie, adapt and resize. What
    would read a head's weight in place of calling it sees by the class that it must not.
    """

    def __init__(self, projection: nn.Module, config: Any) -> None:
        super().__init__()
        self.projection, self.config = projection, config

    @property
    def out_features(self) -> int:
        """How many logits a position has."""
        return int(self.projection.out_features)  # type: ignore[arg-type]

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits ``[..., vocab]`` of last hidden states ``[..., D]``."""
        return scaled_logits(self.projection(hidden), self.config)
