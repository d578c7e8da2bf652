"""A model's parts without the model: names and shapes on the meta device, no forward pass.

Counting needs no more, and starts in half the time because what transformers adds to a model is
not imported.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from wuneng.model.configuration import WuNengConfig
from wuneng.model.structure import BlockParts, ModelParts, output_projection


class Skeleton(nn.Module):
    """Parameters and buffers of a ``WuNengForCausalLM`` by the same names, on the meta device.

    Raises:
        KeyError, TypeError: the rotary settings cannot be computed with.
    """

    def __init__(self, config: WuNengConfig) -> None:
        super().__init__()
        with torch.device("meta"), _NoInitialValues():
            self.model = _Model(config)
            self.lm_head = output_projection(config)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight


class _NoInitialValues(TorchFunctionMode):
    """Modules draw nothing: meta tensors hold no numbers, and ``normal_`` imports the compiler."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


class _Model(nn.Module, ModelParts):
    def __init__(self, config: WuNengConfig) -> None:
        super().__init__()
        self.add_parts(config, _Block, _Rotary)


class _Block(nn.Module, BlockParts):
    def __init__(self, config: WuNengConfig, layer_idx: int) -> None:
        super().__init__()
        self.add_parts(config, layer_idx, lambda name: nn.Identity())


class _Rotary(nn.Module):
    """The buffers of transformers' ``LlamaRotaryEmbedding``."""

    def __init__(self, config: WuNengConfig) -> None:
        super().__init__()
        kind = (config.rope_parameters or {})["rope_type"]
        frequencies = torch.empty((config.head_dim or 0) // 2)
        if kind != "default":
            frequencies = ROPE_INIT_FUNCTIONS[kind](config)[0]
        self.register_buffer("inv_freq", frequencies, persistent=False)
        self.register_buffer("original_inv_freq", frequencies.clone(), persistent=False)
