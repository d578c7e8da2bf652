"""WuNeng as a transformers model: blocks of attention, state heads and middle heads.

    h   = norm(x)
    x'  = x + A' W_o + [lambda * R; Mid] W_branch
    x'' = x' + FFN(norm(x'))

(other families place norms and factors otherwise: :mod:`wuneng.model.residual`).
The same class is the baseline: without state heads it is a Llama, parameter names and all;
without attention heads it is a pure RWKV-7.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from wuneng.layers.attention import Attention
from wuneng.model.adapters import AdapterTargets
from wuneng.model.block import WuNengBlock
from wuneng.model.cache import WuNengCache
from wuneng.model.call_arguments import (
    BOUNDARIES,
    CACHE_KINDS,
    CACHE_NAME,
    cache_of,
    given_cache,
    loss_arguments,
    refuse_unknown,
    with_cache,
)
from wuneng.model.call_layout import whole_call
from wuneng.model.call_shapes import check_shapes, kept_positions
from wuneng.model.configuration import WuNengConfig
from wuneng.model.context_call import piece_call
from wuneng.model.context_loss import loss_of_piece, refuse_head_arguments
from wuneng.model.decoded_token import decoded_token
from wuneng.model.initialisation import initialise
from wuneng.model.logits import ScaledLogits, has_plain_logits, scaled_logits
from wuneng.model.rotary import make_rotary, outgrown
from wuneng.model.structure import ModelParts, output_projection
from wuneng.ops.context import active_context


class WuNengPreTrainedModel(AdapterTargets, PreTrainedModel):
    """What transformers needs to know about every WuNeng model."""

    config: WuNengConfig
    config_class = WuNengConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["WuNengBlock"]
    _skip_keys_device_placement: ClassVar = ["past_key_values", "cache"]
    _supports_flex_attn = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _is_stateful = True
    _can_record_outputs: ClassVar = {
        "hidden_states": WuNengBlock,
        "attentions": OutputRecorder(Attention, index=1),
    }

    @property
    def _supports_sdpa(self) -> bool:
        """torch's own attention has no soft caps."""
        return self.config.attention_softcap is None

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        """Experts run by whatever transformers chooses for a stock model's."""
        return True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if not initialise(module, self.config):
            super()._init_weights(module)


class WuNengModel(WuNengPreTrainedModel, ModelParts):
    """Embedding, blocks and final norm."""

    def __init__(self, config: WuNengConfig) -> None:
        super().__init__(config)
        self.add_parts(config, WuNengBlock, make_rotary)
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
        seq_idx: Tensor | None = None,
        cache: WuNengCache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the blocks.

        Args:
            input_ids: ``[B, T]`` int64.
            attention_mask: ``[B, past + T]``, zero at pads.
            past_key_values, cache: the cache of earlier calls under either of transformers' names.
            use_cache: make a cache where none is given; packed documents never make one, nor do
                pieces of sequences (:func:`wuneng.ops.context.context_parallel`).
            document_ids: ``[B, T]`` integers for packed rows: neither attention nor state crosses
                from one value to the next. ``seq_idx``, ``cu_seq_lens_q`` or ``position_ids`` that
                restart within a row say the same, as elsewhere in transformers.

        Raises:
            ValueError: both or neither of ``input_ids`` and ``inputs_embeds``; a mask or positions
                of another width; packed documents together with a cache, or with a pad inside one
                of them; a mask of pairs for a model with state; what a piece of a sequence cannot
                have (:mod:`wuneng.model.context_call`).
            TypeError: a cache of another kind; an argument that nothing here reads.
        """
        refuse_unknown(kwargs)
        if use_cache not in (None, False, True):
            raise ValueError(f"use_cache: expected True or False, got {use_cache!r}")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if self.config.embedding_multiplier != 1.0:
            hidden = hidden * self.config.embedding_multiplier
        past = given_cache(past_key_values, cache)
        if past is not None and self.gradient_checkpointing and self.training:
            raise ValueError("Activation checkpointing would advance the cache twice: pass none.")
        seen = 0 if past is None else past.get_seq_length()
        check_shapes(hidden, seen, attention_mask, position_ids)
        documents = {"document_ids": document_ids, "seq_idx": seq_idx}
        documents |= {name: kwargs.get(name) for name in BOUNDARIES}
        if self.config.embedding_norm:
            hidden = self.embed_norm(hidden)
        context = active_context()
        given = (hidden, attention_mask, position_ids, documents, past)
        if context is None:
            decoded = decoded_token(self, WuNengBlock, *given, kwargs)
            if decoded is not None:
                return BaseModelOutputWithPast(decoded, **with_cache(past))
            layout, masks, position_embeddings, past = whole_call(self, *given, use_cache)
        else:
            layout, masks, position_embeddings, past = piece_call(context, self, *given)
        first_value: Tensor | None = None
        for block in self.layers:
            hidden, first_value = block(
                hidden,
                first_value,
                masks=masks,
                position_embeddings=position_embeddings,
                layout=layout,
                past_key_values=past,
                **kwargs,
            )
        if past is not None:
            past.advance(hidden.shape[1])
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden), **with_cache(past))


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
        seq_idx: Tensor | None = None,
        cache: WuNengCache | None = None,
        head_loss: Callable[[Tensor, nn.Module], Any] | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits ``[B, T, vocab]``; the loss too given ``labels`` ``[B, T]``, or ``shift_labels``
        whose column t is what follows token t.

        With ``head_loss`` no logits: it is called with the last hidden states ``[B, T, D]`` and the
        head, and what it returns stands as ``loss``. Over a large vocabulary it need not make all
        logits at once. Arguments and errors otherwise as :meth:`WuNengModel.forward`. Under
        context parallelism ``head_loss`` sees this rank's piece, and the loss of ``labels`` is that
        of the whole sequence.
        """
        of_loss, kept = loss_arguments(kwargs, labels, head_loss), kept_positions(logits_to_keep)
        context = active_context()
        if context is not None:
            shifted = of_loss.get("shift_labels")
            asked = (use_cache, logits_to_keep, labels, shifted)
            refuse_head_arguments(context, self.device, *asked)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            document_ids=document_ids,
            seq_idx=seq_idx,
            cache=cache,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        hidden = hidden[:, kept]
        logits = scaled_logits(self.lm_head(hidden), self.config) if head_loss is None else None
        loss = None if head_loss is None else head_loss(hidden, self.output_head())
        if labels is not None or of_loss.get("shift_labels") is not None:
            arguments = {**kwargs, **of_loss, "vocab_size": self.config.vocab_size}
            if context is None:
                loss = self.loss_function(logits=logits, labels=labels, **arguments)
            else:
                loss = loss_of_piece(context, self.loss_function, logits, labels, arguments)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            **with_cache(cache_of(outputs)),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def output_head(self) -> nn.Module:
        """What makes logits ``[..., vocab]`` of last hidden states ``[..., D]``."""
        plain = has_plain_logits(self.config)
        return self.lm_head if plain else ScaledLogits(self.lm_head, self.config)

    @wraps(GenerationMixin.prepare_inputs_for_generation)
    def prepare_inputs_for_generation(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As transformers', but that a text which outgrows longrope's short factors is read anew
        where the source does so."""
        cache = kwargs.get(CACHE_NAME)
        seen = 0 if cache is None else cache.get_seq_length()
        if outgrown(self.config, input_ids.shape[1], seen):
            kwargs |= {CACHE_NAME: None, "next_sequence_length": None}
        return super().prepare_inputs_for_generation(input_ids, *args, **kwargs)

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Refused, as is ``generate_batch``: a paged cache has no room for a recurrent state."""
        raise NotImplementedError(
            "generate_batch (continuous batching) keeps a paged cache, which has no room for a "
            "recurrent state; use generate() with left-padded rows."
        )

    generate_batch = continuous_batching_context_manager = init_continuous_batching

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict, *args: Any, **kwargs: Any
    ) -> Any:
        """Give ``generate`` the hybrid cache in place of transformers' own."""
        if active_context() is not None:
            raise ValueError("context_parallel: generate() runs in one process, outside it.")
        implementation = generation_config.cache_implementation
        if implementation not in CACHE_KINDS:
            raise ValueError(
                f"cache_implementation {implementation!r} cannot hold a recurrent state; "
                "leave it out to use the hybrid cache."
            )
        given = given_cache(model_kwargs.get("past_key_values"), model_kwargs.pop("cache", None))
        if given is None and generation_config.use_cache is not False:
            given = WuNengCache(self.config)
        model_kwargs.pop("past_key_values", None)
        if given is not None:
            model_kwargs[CACHE_NAME] = given
