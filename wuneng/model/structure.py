"""Which parts a model is made of, and what they are called: the one place that says so.

``modeling`` adds what is computed with these parts; ``skeleton`` builds them alone, for counting.
What they take from transformers (activations, rotary embedding) is handed in, because importing it
takes longer than all of the rest.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from torch import nn

from wuneng.kinds import load_kind
from wuneng.layers.attention import Attention
from wuneng.layers.embedding import ScaledEmbedding
from wuneng.layers.experts import MixtureOfExperts
from wuneng.layers.feed_forward import make_feed_forward
from wuneng.layers.middle.base import MiddleHeads, make_middle_heads
from wuneng.layers.norms import make_norm
from wuneng.layers.state.base import StateHeads
from wuneng.model.configuration import WuNengConfig


class BlockParts:
    """For a module that is one layer: norms, attention, state heads, their interaction, MLP."""

    def add_parts(
        self, config: WuNengConfig, layer_idx: int, activation: Callable[[str], nn.Module]
    ) -> None:
        """Build the layer's parts; ``activation`` makes the one that ``hidden_act`` names."""
        size, eps = config.hidden_size, config.rms_norm_eps
        placed = config.norm_placement
        self.input_layernorm = make_norm(config.norm, size, eps) if placed != "post" else None
        self.self_attn = Attention(config, layer_idx) if config.has_attention(layer_idx) else None
        if config.has_state(layer_idx):
            kind = load_kind("state", config.state_kind)
            self.state_heads: StateHeads | None = kind(config, layer_idx)
            self.cross_head: MiddleHeads | None = make_middle_heads(config, layer_idx)
        else:
            self.state_heads = self.cross_head = None
        self.post_attention_layernorm = make_norm(config.norm, size, eps)
        if placed == "both":
            self.pre_feedforward_layernorm = make_norm(config.norm, size, eps)
        if placed != "pre":
            self.post_feedforward_layernorm = make_norm(config.norm, size, eps)
        width = config.intermediate_size
        assert width is not None
        self.mlp = (
            MixtureOfExperts(config)
            if config.has_experts(layer_idx)
            else make_feed_forward(
                config.ffn, size, width, lambda: activation(config.hidden_act), config.mlp_bias
            )
        )


class ModelParts:
    """For a module that is a model without its output: embedding, layers, norm, rotary."""

    def add_parts(
        self,
        config: WuNengConfig,
        block: Callable[[WuNengConfig, int], nn.Module],
        rotary: Callable[[WuNengConfig], nn.Module],
        layers: Sequence[int] | None = None,
    ) -> None:
        """Build the parts; ``block`` makes layer ``i``, ``rotary`` what turns queries and keys.

        Only ``layers``, where they are given."""
        size = config.hidden_size
        embedding = ScaledEmbedding if config.scaled_embedding else nn.Embedding
        self.embed_tokens = embedding(config.vocab_size, size, config.pad_token_id)
        if config.embedding_norm:
            self.embed_norm = make_norm(config.norm, size, config.rms_norm_eps)
        wanted = range(config.num_hidden_layers) if layers is None else layers
        self.layers = nn.ModuleList(block(config, i) for i in wanted)
        self.norm = make_norm(config.norm, size, config.rms_norm_eps)
        if config.num_attention_heads:
            self.rotary_emb = rotary(config)
            if config.sliding_rope_parameters is not None:
                self.sliding_rotary_emb = rotary(_with_sliding_rope(config))


def _with_sliding_rope(config: WuNengConfig) -> WuNengConfig:
    """As a layer with a sliding window reads the configuration."""
    other = copy.copy(config)
    other.rope_parameters = config.sliding_rope_parameters
    return other


def output_projection(config: WuNengConfig) -> nn.Linear:
    """``lm_head``, before it is tied to the embedding."""
    return nn.Linear(config.hidden_size, config.vocab_size, bias=False)
