"""One cache for keys and values, WKV states, token-shift vectors and snapshot rings.

Each layer of :class:`WuNengCache` is an ordinary transformers cache layer (growing, or a sliding
window) that also holds named per-sequence tensors whose first dimension is the batch:

    wkv              ``[B, S, N_value, N_key]`` float32
    shift            last token of what the state heads shift
    attention_shift  last token of attention's own keys and values (the control arm)
    conv_r, _k, _v   last tokens of a short convolution; attention_conv_q, _k, _v of attention's
    ffn_shift        last input of RWKV-7's channel mix
    ring, position   snapshots ``[B, n, S, N, N]`` and tokens seen ``[B]``

Beams reorder, repeat and select all of them together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

from wuneng.model.growing_keys import GrowingKeys


class _NamedStates(CacheLayerMixin):
    """Per-sequence tensors of one layer, kept in step with its keys and values.

    A mixin: the transformers layer that follows it in a class's bases does the rest.
    """

    is_croppable = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.states: dict[str, Tensor] = {}

    def get(self, name: str) -> Tensor | None:
        """The named tensor of an earlier call, or None at the start."""
        return self.states.get(name)

    def put(self, name: str, value: Tensor) -> None:
        """Replace the named tensor."""
        self.states[name] = value

    def bytes(self) -> int:
        """Bytes held by the named tensors (keys and values apart)."""
        return sum(t.numel() * t.element_size() for t in self.states.values())

    def reset(self) -> None:
        # dropped before `super` zeroes them: not every transformers release does so by itself
        self.keys = self.values = None
        self.is_initialized = False
        super().reset()
        self.states = {}

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse: what a state has absorbed cannot be taken out again."""
        if tokens_to_remove:
            raise ValueError("A WuNeng cache cannot be cropped: a recurrent state has no past.")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._map_states(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._map_states(lambda t: t.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._map_states(lambda t: t[indices])

    def _map_states(self, function: Callable[[Tensor], Tensor]) -> None:
        self.states = {name: function(value) for name, value in self.states.items()}


class HybridLayer(_NamedStates, GrowingKeys, DynamicLayer):  # type: ignore[misc]
    """Growing keys and values beside the named states."""


class SlidingHybridLayer(_NamedStates, DynamicSlidingWindowLayer):
    """Keys and values of the last ``sliding_window`` tokens beside the named states."""


class _NoKeys(DynamicLayer):
    """A transformers layer that only counts tokens."""

    tokens_seen = 0

    def get_seq_length(self) -> int:
        return self.tokens_seen

    def reset(self) -> None:
        self.tokens_seen = 0

    def reorder_cache(self, beam_idx: Tensor) -> None: ...

    def batch_repeat_interleave(self, repeats: int) -> None: ...

    def batch_select_indices(self, indices: Tensor) -> None: ...


class StateOnlyLayer(_NamedStates, _NoKeys):
    """A layer without attention heads: the named states, and a count of the tokens seen."""


class WuNengCache(Cache):
    """The hybrid cache of a WuNeng model; ``generate`` makes one by itself."""

    def __init__(self, config: Any) -> None:
        layers: list[Any] = []
        for layer_idx in range(config.num_hidden_layers):
            if not config.has_attention(layer_idx):
                layers.append(StateOnlyLayer())
            elif config.is_sliding(layer_idx):
                layers.append(SlidingHybridLayer(sliding_window=config.sliding_window))
            else:
                layers.append(HybridLayer())
        super().__init__(layers=layers)

    def advance(self, tokens: int) -> None:
        """Count ``tokens`` more in the layers that have no keys to count by."""
        for layer in self.layers:
            if isinstance(layer, StateOnlyLayer):
                layer.tokens_seen += tokens

    def state_bytes(self) -> int:
        """Bytes of recurrent state, shift vectors and snapshots over all layers."""
        return sum(layer.bytes() for layer in self.layers)

    def key_value_bytes(self) -> int:
        """Bytes of keys and values over all layers."""
        tensors = [t for layer in self.layers for t in (layer.keys, layer.values)]
        return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
