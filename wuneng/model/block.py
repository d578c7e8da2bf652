"""One layer of a WuNeng: hybrid attention and feed-forward, each behind a norm and a residual."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from wuneng.layers.capped_attention import capped_attention
from wuneng.layers.layout import SequenceLayout
from wuneng.layers.plain_modules import as_written
from wuneng.model.branch_way import BranchWay
from wuneng.model.cache import WuNengCache
from wuneng.model.configuration import WuNengConfig
from wuneng.model.residual import ResidualParts

__all__ = ["WuNengBlock"]


@as_written  # transformers puts its checkpointing around it
class WuNengBlock(GradientCheckpointingLayer, ResidualParts):
    """Norms, attention beside state and middle heads, feed-forward."""

    def __init__(self, config: WuNengConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.mask_kind = "sliding" if config.is_sliding(layer_idx) else "full"
        #: What becomes of the branch while an upgrade trains; None: it is added to attention.
        self.branch_way: BranchWay | None = None
        self.residual_multiplier = config.residual_multiplier
        self.norm_placement = config.norm_placement
        self.add_parts(config, layer_idx, ACT2FN.__getitem__)

    def forward(
        self,
        hidden: Tensor,
        first_value: Tensor | None,
        masks: dict[str, Any],
        position_embeddings: dict[str, tuple[Tensor, Tensor]],
        layout: SequenceLayout,
        past_key_values: WuNengCache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """``hidden`` ``[B, T, D]`` through the layer; ``first_value``: RWKV-7's value residual."""
        slot = None if past_key_values is None else past_key_values.layers[self.layer_idx]
        h = self.to_heads(hidden)
        heads, attention, way = None, self.self_attn, self.branch_way
        if attention is not None and not (way and way.skips_attention(self)):
            mask = masks[self.mask_kind]
            capped = attention.config.attention_softcap is not None
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(
                attention.config._attn_implementation,
                capped_attention if capped else eager_attention_forward,
            )
            positions = position_embeddings[self.mask_kind]
            heads, _ = attention(h, positions, mask, layout, attend, past_key_values, **kwargs)
            heads = heads if way is None else way.left_of(self, heads)
        attended = None if heads is None else heads.output
        branch = None
        silent = self.cross_head is None or (way is not None and way.is_silent(self))
        if self.state_heads is not None and self.cross_head is not None and not silent:
            # Asked of the class: what wraps a module would be gone past.
            one_token = getattr(type(self.state_heads), "one_token", None)
            short = one_token and one_token(
                self.state_heads, self.cross_head, h, heads, layout, slot
            )
            if short is not None:
                attended, branch = short
            else:
                readout, first_value = self.state_heads(h, heads, first_value, layout, slot)
                attended, branch = self.cross_head(attended, readout)
        if way is not None and heads is not None and branch is not None and way.is_watched(self):
            said: Tensor | None = way.shown(self, hidden, heads.output, branch, (layout, slot))
        elif attention is not None and attended is not None:
            mixed = attention.o_proj(attended)
            said = mixed if branch is None else mixed + branch
        else:
            said = branch
        if said is not None:
            hidden = hidden + self.from_heads(said)
        return hidden + self.from_feed_forward(hidden, layout, slot), first_value
