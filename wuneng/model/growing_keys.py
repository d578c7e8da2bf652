"""Keys and values with room to grow: a decoded token is written, not concatenated.

``torch.cat`` copies the whole cache at every token, on a CPU the larger half of decoding at a few
thousand tokens of context. Here a layer's keys are the filled part of a larger buffer, and a new
token goes behind them. Whatever else transformers does with a cache (reordering beams, repeating
rows, cropping) replaces ``keys`` by another tensor; that is noticed, and the next token starts a
buffer of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

#: Room for this share of the present tokens more, and at least so many.
GROWTH = 0.25
LEAST_ROOM = 64


class _Buffer:
    """``[B, G, capacity, N]`` and how many tokens of it are taken, by whomever."""

    def __init__(self, old: Tensor | None, new: Tensor) -> None:
        tokens = new.shape[-2] + (0 if old is None else old.shape[-2])
        capacity = tokens + max(LEAST_ROOM, int(GROWTH * tokens))
        self.memory = new.new_empty(*new.shape[:-2], capacity, new.shape[-1])
        self.filled = 0
        if old is not None:
            self.append(old)
        self.append(new)

    def append(self, new: Tensor) -> None:
        end = self.filled + new.shape[-2]
        self.memory.narrow(-2, self.filled, new.shape[-2]).copy_(new)
        self.filled = end

    def view(self) -> Tensor:
        return self.memory.narrow(-2, 0, self.filled)

    def continues(self, old: Tensor, new: Tensor) -> bool:
        """Whether ``new`` may be written behind ``old``: it is this buffer's, its end, and fits.

        Of two caches that share a buffer (a shallow copy) only the first to go on may have it.
        """
        fits = old.shape[:-2] == new.shape[:-2] and old.dtype == new.dtype
        return fits and self.has_room_behind(old, new.shape[-2])

    def has_room_behind(self, old: Tensor, tokens: int) -> bool:
        """The same of so many tokens of the shape and kind of ``old``."""
        return (
            old.data_ptr() == self.memory.data_ptr()
            and old.shape[-2] == self.filled
            and old.shape[:-2] == self.memory.shape[:-2]
            and old.stride() == self.memory.stride()
            and self.filled + tokens <= self.memory.shape[-2]
            and self.memory.is_inference() == torch.is_inference_mode_enabled()
        )


class GrowingKeys(CacheLayerMixin):
    """A mixin before transformers' ``DynamicLayer``: ``update`` appends in place where it may."""

    keys: Any  # None before the first tokens
    values: Any
    _rooms: tuple[_Buffer, _Buffer] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """All keys and values ``[B, G, T, N]`` with the new ones behind the old.

        With gradients, under a compiler and for a first call (a prompt is often scored only) this
        is transformers' own concatenation.
        """
        old, rooms = (self.keys, self.values), self._rooms
        graded = torch.is_grad_enabled() and key_states.requires_grad
        first = not self.is_initialized or old[0] is None or old[0].numel() == 0
        if first or graded or torch.compiler.is_compiling():
            self._rooms = None
            return super().update(key_states, value_states, *args, **kwargs)
        new = (key_states, value_states)
        if rooms is not None and all(map(_Buffer.continues, rooms, old, new)):
            for room, states in zip(rooms, new, strict=True):
                room.append(states)
        else:
            rooms = self._rooms = (_Buffer(old[0], new[0]), _Buffer(old[1], new[1]))
        self.keys, self.values = rooms[0].view(), rooms[1].view()
        return self.keys, self.values

    def extended(self) -> tuple[Tensor, Tensor] | None:
        """All keys and values and room behind them for one token, which the caller writes; None
        where :meth:`update` has to be called. Without gradients."""
        rooms = self._rooms
        if rooms is None or not (
            rooms[0].has_room_behind(self.keys, 1) and rooms[1].has_room_behind(self.values, 1)
        ):
            return None
        for room in rooms:
            room.filled += 1
        self.keys, self.values = rooms[0].view(), rooms[1].view()
        return self.keys, self.values

    def reclaim(self) -> None:
        """Let this layer go on in place after a shallow copy of it did: what that copy appended is
        lost. For a caller that decodes from one cache again and again."""
        for room in self._rooms or ():
            room.filled = self.keys.shape[-2]
