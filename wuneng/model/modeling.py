"""WuNeng as a transformers model: blocks of attention, state heads and middle heads.

    h   = norm(x)
    x'  = x + A' W_o + [lambda * R; Mid] W_branch
    x'' = x' + FFN(norm(x'))

The same class is the baseline: without state heads it is a Llama, parameter names and all;
without attention heads it is a pure RWKV-7.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaRotaryEmbedding,
    eager_attention_forward,
)
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from wuneng.layers.attention import Attention
from wuneng.layers.layout import SequenceLayout
from wuneng.layers.token_path import one_token
from wuneng.model.cache import WuNengCache
from wuneng.model.configuration import WuNengConfig
from wuneng.model.initialisation import initialise
from wuneng.model.masks import attention_masks
from wuneng.model.structure import BlockParts, ModelParts, output_projection


class WuNengBlock(GradientCheckpointingLayer, BlockParts):
    """One layer: hybrid attention and feed-forward, each behind a norm and a residual."""

    def __init__(self, config: WuNengConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.mask_kind = "sliding" if config.is_sliding(layer_idx) else "full"
        self.add_parts(config, layer_idx, ACT2FN.__getitem__)

    def forward(
        self,
        hidden: Tensor,
        first_value: Tensor | None,
        masks: dict[str, Any],
        position_embeddings: tuple[Tensor, Tensor] | None,
        layout: SequenceLayout,
        past_key_values: WuNengCache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """``hidden`` ``[B, T, D]`` through the layer; ``first_value``: RWKV-7's value residual."""
        slot = None if past_key_values is None else past_key_values.layers[self.layer_idx]
        h = self.input_layernorm(hidden)
        heads, attention = None, self.self_attn
        if attention is not None:
            mask = masks[self.mask_kind]
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(
                attention.config._attn_implementation, eager_attention_forward
            )
            heads, _ = attention(
                h, position_embeddings, mask, layout, attend, past_key_values, **kwargs
            )
        attended = None if heads is None else heads.output
        branch = None
        if self.state_heads is not None and self.cross_head is not None:
            short = one_token(self.state_heads, self.cross_head, h, heads, layout, slot)
            if short is not None:
                attended, branch = short
            else:
                readout, first_value = self.state_heads(h, heads, first_value, layout, slot)
                attended, branch = self.cross_head(attended, readout)
        if attention is not None:
            mixed = attention.o_proj(attended)
            hidden = hidden + (mixed if branch is None else mixed + branch)
        elif branch is not None:
            hidden = hidden + branch
        h = self.post_attention_layernorm(hidden)
        return hidden + self.mlp(h, layout, slot), first_value


class WuNengPreTrainedModel(PreTrainedModel):
    """What transformers needs to know about every WuNeng model."""

    config: WuNengConfig
    config_class = WuNengConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["WuNengBlock"]
    _skip_keys_device_placement: ClassVar = ["past_key_values"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _is_stateful = True
    _can_record_outputs: ClassVar = {
        "hidden_states": WuNengBlock,
        "attentions": OutputRecorder(Attention, index=1),
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if not initialise(module, self.config):
            super()._init_weights(module)


class WuNengModel(WuNengPreTrainedModel, ModelParts):
    """Embedding, blocks and final norm."""

    def __init__(self, config: WuNengConfig) -> None:
        super().__init__(config)
        self.add_parts(config, WuNengBlock, LlamaRotaryEmbedding)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: WuNengCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        document_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the blocks.

        Args:
            input_ids: ``[B, T]`` int64.
            attention_mask: ``[B, past + T]``, zero at pads (left or right).
            document_ids: ``[B, T]`` integers for packed rows: neither attention nor state crosses
                from one value to the next. Without it, ``position_ids`` that restart within a row
                mark documents, as elsewhere in transformers.

        Raises:
            ValueError: both or neither of ``input_ids`` and ``inputs_embeds``; packed documents
                together with a cache or a padding mask.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = WuNengCache(self.config)
        if not use_cache and past_key_values is None:
            document_ids = _documents(document_ids, position_ids, attention_mask)
        elif document_ids is not None:
            raise ValueError("document_ids (packed documents) cannot be combined with a cache.")
        position_ids = _positions(hidden, position_ids, past_key_values, document_ids)
        layout = _layout(hidden, attention_mask, document_ids)
        masks: dict[str, Any] = {}
        position_embeddings = None
        if self.config.num_attention_heads:
            masks = attention_masks(
                self.config, hidden, attention_mask, past_key_values, position_ids, document_ids
            )
            position_embeddings = self.rotary_emb(hidden, position_ids=position_ids)
        if self.config.embedding_norm:
            hidden = self.embed_norm(hidden)
        first_value: Tensor | None = None
        for block in self.layers:
            hidden, first_value = block(
                hidden,
                first_value,
                masks=masks,
                position_embeddings=position_embeddings,
                layout=layout,
                past_key_values=past_key_values,
                **kwargs,
            )
        if past_key_values is not None:
            past_key_values.advance(hidden.shape[1])
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden), past_key_values=past_key_values
        )


class WuNengForCausalLM(WuNengPreTrainedModel, GenerationMixin):
    """The causal language model; ``generate`` uses the hybrid cache."""

    _tied_weights_keys: ClassVar = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: WuNengConfig) -> None:
        super().__init__(config)
        self.model = WuNengModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = output_projection(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: WuNengCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        document_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits ``[B, T, vocab]``; the loss too given ``labels`` ``[B, T]`` (not yet shifted)."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            document_ids=document_ids,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        if isinstance(logits_to_keep, int):
            hidden = hidden[:, -logits_to_keep:] if logits_to_keep else hidden
        else:
            hidden = hidden[:, logits_to_keep]
        logits = self.lm_head(hidden)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict, *args: Any, **kwargs: Any
    ) -> Any:
        """Give ``generate`` the hybrid cache in place of transformers' own."""
        implementation = generation_config.cache_implementation
        if implementation not in (None, "dynamic", "hybrid"):
            raise ValueError(
                f"cache_implementation {implementation!r} cannot hold a recurrent state; "
                "leave it out to use the hybrid cache."
            )
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = WuNengCache(self.config)


def _documents(
    document_ids: Tensor | None, position_ids: Tensor | None, attention_mask: Tensor | None
) -> Tensor | None:
    """Document ids as given, or read off position ids that restart within a row."""
    if document_ids is not None:
        if attention_mask is not None and not bool(attention_mask.all()):
            raise ValueError("document_ids and an attention_mask with pads cannot be combined.")
        return document_ids
    if position_ids is None or attention_mask is not None or position_ids.shape[-1] < 2:
        return None
    restarts = position_ids[:, 1:] != position_ids[:, :-1] + 1
    if not bool(restarts.any()):
        return None
    return nn.functional.pad(restarts.long(), (1, 0)).cumsum(-1)


def _positions(
    hidden: Tensor,
    position_ids: Tensor | None,
    past_key_values: WuNengCache | None,
    document_ids: Tensor | None,
) -> Tensor:
    """Position of each token: given, or counted from the document's start or the cache's end."""
    if position_ids is not None:
        return position_ids
    index = torch.arange(hidden.shape[1], device=hidden.device)
    if document_ids is None:
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        return (index + seen).unsqueeze(0)
    starts = nn.functional.pad(document_ids[:, 1:] != document_ids[:, :-1], (1, 0), value=True)
    return index - torch.where(starts, index, 0).cummax(-1).values


def _layout(
    hidden: Tensor, attention_mask: Tensor | None, document_ids: Tensor | None
) -> SequenceLayout:
    batch, length = hidden.shape[:2]
    if document_ids is not None:
        return SequenceLayout.from_documents(document_ids)
    if attention_mask is None or attention_mask.dim() != 2:
        return SequenceLayout.dense(batch, length)
    return SequenceLayout.from_padding(attention_mask[:, -length:])
