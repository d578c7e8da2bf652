"""A decoded token with a static cache, the form that ``torch.compile`` takes without recompiling.

All that changes from token to token is in tensors of one size: keys and values have room for some
tokens more, of which a mask shows those that are there, and states are written in place. What
transformers puts around a model (arguments, output classes, the cache's bookkeeping) is left out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wuneng.layers.layout import SequenceLayout
from wuneng.model.rotary import position_embeddings

#: Tokens that there is room for behind the context.
ROOM = 64


class _Slot:
    """A layer's named states: read as they were before the token, written elsewhere."""

    def __init__(self, states: dict[str, Tensor]) -> None:
        self.before = {name: x.clone() for name, x in states.items()}
        self.after = {name: x.clone() for name, x in states.items()}

    def get(self, name: str) -> Tensor | None:
        return self.before.get(name)

    def put(self, name: str, value: Tensor) -> None:
        self.after[name].copy_(value)


class _StaticCache:
    """Keys and values ``[B, G, context + ROOM, N]`` of every layer, and its states."""

    def __init__(self, cache: Any) -> None:
        self.layers = [_Slot(layer.states) for layer in cache.layers]
        self.position = torch.tensor([cache.get_seq_length()])
        self.rooms = [
            tuple(torch.nn.functional.pad(x, (0, 0, 0, ROOM)) for x in (layer.keys, layer.values))
            if isinstance(layer.keys, Tensor)
            else ()
            for layer in cache.layers
        ]

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Everything that there is room for, with the new keys and values in their place."""
        for room, new in zip(self.rooms[layer], (keys, values), strict=True):
            room.index_copy_(2, self.position, new)
        all_keys, all_values = self.rooms[layer]
        return all_keys, all_values


class StaticStep:
    """The same next token again and again, as ``wuneng.bench`` decodes it: each call starts from
    the same cache."""

    def __init__(self, model: Any, cache: Any, tokens: list[Tensor]) -> None:
        """``model`` a ``WuNengForCausalLM`` with plain logits and without sliding windows;
        ``tokens`` ``[B, 1]`` each, after ``cache``."""
        self.model, self.cache, self.tokens = model, _StaticCache(cache), tokens
        lengths = [room[0].shape[2] for room in self.cache.rooms if room]
        self.places = torch.arange(max(lengths, default=0))
        self.layout = SequenceLayout.dense(*tokens[0].shape)
        self.step = self.logits

    def compiled(self, **options: Any) -> StaticStep:
        """Itself, compiled in one graph at this one shape at its next call."""
        self.step = torch.compile(self.logits, fullgraph=True, dynamic=False, **options)
        return self

    def logits(self, token: Tensor) -> Tensor:
        """``[B, vocabulary]`` of the ``token`` ``[B, 1]``."""
        body, cache = self.model.model, self.cache
        hidden, first_value = body.embed_tokens(token), None
        turns = position_embeddings(body, hidden, cache.position[None]) if any(cache.rooms) else {}
        mask = (self.places <= cache.position)[None, None, None]
        for block in body.layers:
            hidden, first_value = block(
                hidden,
                first_value,
                masks={"full": mask},
                position_embeddings=turns,
                layout=self.layout,
                past_key_values=cache,
            )
        logits: Tensor = self.model.lm_head(body.norm(hidden))[:, -1]
        return logits

    @torch.inference_mode()
    def __call__(self, index: int) -> Tensor:
        """The likeliest token after it, ``[B]``."""
        return self.step(self.tokens[index % len(self.tokens)]).argmax(-1)
