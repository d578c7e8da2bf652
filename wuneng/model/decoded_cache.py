"""The cache of a decoded token's one call: whether it may be read, and room for one token more.

Legend: B sequences, G key/value and S state heads, N head size.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wuneng.model.cache import HybridLayer, SlidingHybridLayer, StateOnlyLayer, WuNengCache
from wuneng.ops.native.memory import room
from wuneng.ops.native.token_arguments import LayerCache
from wuneng.ops.plain import are_plain

__all__ = ["CachePlan"]

Shape = tuple[int, ...]
#: In the order of a :class:`LayerCache`.
#: As it is written: who replaces it has it called.
_UPDATE = HybridLayer.update
_STATES = ("wkv", "shift", "attention_shift")
_CONVOLVED = (*(f"conv_{x}" for x in "rkv"), *(f"attention_conv_{x}" for x in "qkv"))


class _Layer(NamedTuple):
    """What a layer's cache is: its class, its window, and the shapes of its named states."""

    kind: type[Any]
    window: int | None
    states: dict[str, Shape]

    @property
    def is_convolved(self) -> bool:
        return not self.states.keys().isdisjoint(_CONVOLVED)


class CachePlan:
    """What the caches of B sequences have to be, of blocks that the call takes."""

    def __init__(self, blocks: Iterable[Any], config: Any, batch: int) -> None:
        self.batch, self.size = batch, config.head_dim
        self.groups = config.num_key_value_heads
        self.layers = [self._layer(block, config) for block in blocks]

    def _layer(self, block: Any, config: Any) -> _Layer:
        attention, heads = block.self_attn, block.state_heads
        states: dict[str, Shape] = {}
        if heads is not None:
            states["wkv"] = (self.batch, heads.heads, heads.head_dim, heads.head_dim)
            if heads.carried:
                states["shift"] = (self.batch, heads.carried)
            states |= self._convolved("conv_", "rkv", heads.convolution_weights())
        if attention is None:
            return _Layer(StateOnlyLayer, None, states)
        if config.attention_token_shift:
            states["attention_shift"] = (self.batch, 2 * self.groups * self.size)
        if config.attention_short_conv:
            taps = [attention._modules[f"{x}_conv"].weight for x in "qkv"]
            states |= self._convolved("attention_conv_", "qkv", taps)
        window = attention.sliding_window
        return _Layer(HybridLayer if window is None else SlidingHybridLayer, window, states)

    def _convolved(self, name: str, letters: str, weights: Iterable[Any]) -> dict[str, Shape]:
        """Tokens that short convolutions ``[C, taps]`` keep, none where there are none."""
        return {
            f"{name}{letter}": (self.batch, (x.shape[1] - 1) * x.shape[0])
            for letter, x in zip(letters, weights, strict=True)
            if x is not None
        }

    def fits(self, cache: WuNengCache) -> bool:
        """Whether every layer holds what an earlier call left, in float32."""
        seen = cache.get_seq_length()
        if not seen or len(cache.layers) != len(self.layers) or getattr(cache, "offloading", False):
            return False
        for layer, plan in zip(_layers(cache), self.layers, strict=True):
            if type(layer) is not plan.kind or "update" in layer.__dict__:
                return False
            if not self._holds_tokens(layer, plan, seen):
                return False
            for name, shape in plan.states.items():
                if layer.get(name) is not None and not _is_float(layer.get(name), shape):
                    return False
        return True

    def _holds_tokens(self, layer: Any, plan: _Layer, seen: int) -> bool:
        """Whether the layer has seen so many tokens, and holds the keys and values it should."""
        if plan.kind is StateOnlyLayer:
            return bool(layer.tokens_seen == seen)
        tokens = seen
        if plan.window is not None:
            tokens = min(seen, plan.window - 1)
            if layer.record_past or layer.sliding_window != plan.window:
                return False
        shape = (self.batch, self.groups, tokens, self.size)
        return _is_float(layer.keys, shape) and _is_float(layer.values, shape)

    def advanced(self, cache: WuNengCache) -> list[LayerCache]:
        """Room for one token more in every layer of a cache that fits, and for its state after it;
        that the token is seen is for :meth:`WuNengCache.advance` to say."""
        new = room(self.batch, self.groups, 1, self.size)
        return [
            _advanced(layer, plan, new)
            for layer, plan in zip(_layers(cache), self.layers, strict=True)
        ]


def _layers(cache: WuNengCache) -> list[Any]:
    return cache.layers


def _is_float(x: Tensor | None, shape: Shape) -> bool:
    return (
        x is not None
        and are_plain(x)
        and x.shape == shape
        and x.dtype == torch.float32
        and bool(x.is_cpu)
    )


def _advanced(layer: Any, plan: _Layer, new: Tensor) -> LayerCache:
    keys = None
    if plan.kind is StateOnlyLayer:
        keys = (None, None)
    elif plan.kind is HybridLayer and HybridLayer.update is _UPDATE:
        keys = layer.extended()
    if keys is None:
        keys = layer.update(new, new)
    states = [x for name in _STATES for x in _before_and_after(layer, plan, name)]
    advanced = LayerCache(*keys, *states)
    if not plan.is_convolved:
        return advanced
    convolved = [x for name in _CONVOLVED for x in _before_and_after(layer, plan, name)]
    return advanced._replace(convolutions=tuple(convolved))


def _before_and_after(layer: Any, plan: _Layer, name: str) -> tuple[Tensor | None, Tensor | None]:
    """One of a layer's states, None for zero, and room for the next, which is put in its place."""
    shape = plan.states.get(name)
    if shape is None:
        return None, None
    before, after = layer.get(name), room(*shape)
    layer.put(name, after)
    # A prompt's last token is a view of all of its tokens.
    return None if before is None else before.contiguous(), after
