"""A model's parts without the model: names and shapes on the meta device, no forward pass.

Counting needs no more, and starts in half the time because what transformers adds to a model is
not imported.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from wuneng.errors import reason
from wuneng.model.configuration import WuNengConfig
from wuneng.model.structure import BlockParts, ModelParts, output_projection


class Skeleton(nn.Module):
    """Parameters and buffers of a ``WuNengForCausalLM`` by the same names, on the meta device.

    Args:
        layers: which of the layers to build; default all of them.

    Raises:
        ValueError: the rotary settings cannot be computed with.
        RuntimeError: a tensor has more elements than can be counted.
    """

    def __init__(self, config: WuNengConfig, layers: Sequence[int] | None = None) -> None:
        super().__init__()
        with torch.device("meta"), _NoInitialValues():
            self.model = _Model(config, layers)
            self.lm_head = output_projection(config)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight


class Layout(NamedTuple):
    """What a model holds, by name, in the order of ``named_parameters``."""

    parameters: dict[str, torch.Size]
    """Shape of every parameter; a tied output projection is in the embedding."""
    linears: dict[str, tuple[int, int]]
    """Inputs and outputs of every linear layer, ``lm_head`` included."""


def layout(config: WuNengConfig) -> Layout:
    """Names and shapes of the whole model. Layers with equal parts are built once, so that a
    thousand of them take no longer than three. Errors of ``Skeleton``."""
    kinds: dict[tuple[bool, str, bool], int] = {}
    # The first layer has no value residual, and not every layer has the same heads.
    first = config.first_state_layer
    of_layer = [
        (i <= first, config.layer_kind(i), config.has_experts(i))
        for i in range(config.num_hidden_layers)
    ]
    for i, kind in enumerate(of_layer):
        kinds.setdefault(kind, i)
    model = Skeleton(config, list(kinds.values()))
    built = [list(kinds).index(kind) for kind in of_layer]
    modules = model.named_modules()
    return Layout(
        _of_all_layers({n: p.shape for n, p in model.named_parameters()}, built),
        _of_all_layers(
            {n: (m.in_features, m.out_features) for n, m in modules if isinstance(m, nn.Linear)},
            built,
        ),
    )


_LAYER = re.compile(r"model\.layers\.(\d+)\.")
T = TypeVar("T")


def _of_all_layers(values: dict[str, T], built: Sequence[int]) -> dict[str, T]:
    """Values by name, those of layer ``i`` taken from the layer that was built ``built[i]``-th."""
    before: dict[str, T] = {}
    after: dict[str, T] = {}
    of_built: dict[int, dict[str, T]] = {}
    for name, value in values.items():
        found = _LAYER.match(name)
        if found:
            of_built.setdefault(int(found[1]), {})[name[found.end() :]] = value
        else:
            (after if of_built else before)[name] = value
    layers = {
        f"model.layers.{i}.{rest}": value
        for i, position in enumerate(built)
        for rest, value in of_built[position].items()
    }
    return before | layers | after


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
    def __init__(self, config: WuNengConfig, layers: Sequence[int] | None) -> None:
        super().__init__()
        self.add_parts(config, _Block, _Rotary, layers)


class _Block(nn.Module, BlockParts):
    def __init__(self, config: WuNengConfig, layer_idx: int) -> None:
        super().__init__()
        self.add_parts(config, layer_idx, lambda name: nn.Identity())


class _Rotary(nn.Module):
    """The buffers of transformers' ``LlamaRotaryEmbedding``."""

    def __init__(self, config: WuNengConfig) -> None:
        super().__init__()
        kind = (config.rope_parameters or {})["rope_type"]
        part = (config.rope_parameters or {}).get("partial_rotary_factor", 1.0)
        frequencies = torch.empty((int((config.head_dim or 0) * part) + 1) // 2)
        if kind != "default":
            try:
                frequencies = ROPE_INIT_FUNCTIONS[kind](config)[0]
            except Exception as error:  # transformers computes with whatever it is given
                raise ValueError(
                    f"rope_type {kind} cannot be computed with these settings: {reason(error)}"
                ) from error
        self.register_buffer("inv_freq", frequencies, persistent=False)
        self.register_buffer("original_inv_freq", frequencies.clone(), persistent=False)
