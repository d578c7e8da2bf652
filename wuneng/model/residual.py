"""What a layer's parts add to the residual stream: what they say, behind its norms and factor.

Legend: B batch, T tokens, D model width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from wuneng.layers.layout import SequenceLayout
from wuneng.model.structure import BlockParts

__all__ = ["ResidualParts"]


class ResidualParts(BlockParts):
    """The parts of a layer, as they stand in the residual stream."""

    residual_multiplier: float
    norm_placement: str

    def to_heads(self, hidden: Tensor) -> Tensor:
        """What attention and state heads read of ``hidden`` ``[B, T, D]``."""
        return hidden if self.input_layernorm is None else self.input_layernorm(hidden)

    def from_heads(self, said: Tensor) -> Tensor:
        """What attention and its branch add, who say ``said`` ``[B, T, D]``."""
        if self.norm_placement != "pre":
            said = self.post_attention_layernorm(said)
        return self._scaled(said)

    def from_feed_forward(self, hidden: Tensor, layout: SequenceLayout, slot: Any) -> Tensor:
        """What the feed-forward layer adds to ``hidden`` ``[B, T, D]``."""
        if self.norm_placement == "pre":
            hidden = self.post_attention_layernorm(hidden)
        elif self.norm_placement == "both":
            hidden = self.pre_feedforward_layernorm(hidden)
        said = self.mlp(hidden, layout, slot)
        if self.norm_placement != "pre":
            said = self.post_feedforward_layernorm(said)
        return self._scaled(said)

    def _scaled(self, said: Tensor) -> Tensor:
        return said if self.residual_multiplier == 1.0 else said * self.residual_multiplier
