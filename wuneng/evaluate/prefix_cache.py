"""A pool of computed beginnings, which forward calls fill and whose rows later calls continue.

A :class:`PrefixPool` holds, for each layer, keys and values ``[P, G, W, N]`` of P beginnings of at
most W tokens, aligned on the right, and a WuNeng's per-sequence tensors (state, shift vectors,
snapshots) ``[P, ...]``. To a model it looks like a cache: one that is empty and stores what the
model puts into it (:meth:`PrefixPool.filling`), or one that already holds chosen rows
(:meth:`PrefixPool.continuing`). An ordinary cache would do, at the price of two more copies of
everything: one to join the beginnings, one to take a row out for each ending.

Aligned on the right, an ending follows its beginning directly, as window and token shift need it;
the caller masks what is left of a shorter beginning. Windows are up to the mask: sliding layers
keep all of their keys, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from wuneng.model.cache import WuNengCache
from wuneng.model.call_arguments import cache_of

__all__ = ["CacheShapes", "PrefixPool"]


@dataclass(frozen=True)
class _LayerShapes:
    """One row's tensors in a layer: ``keys`` is of one token ``[G, N]``, None without attention."""

    keys: Tensor | None
    values: Tensor | None
    states: dict[str, Tensor]
    is_sliding: bool


@dataclass(frozen=True)
class CacheShapes:
    """What a model caches for a sequence, read off a call with one token."""

    layers: list[_LayerShapes]

    @classmethod
    def of(cls, base: Any, device: torch.device) -> CacheShapes:
        """Of a model without its output layer."""
        token = torch.zeros(1, 1, dtype=torch.long, device=device)
        cache = cache_of(base(token, use_cache=True))
        return cls(
            [
                _LayerShapes(
                    keys=layer.keys[0, :, 0] if isinstance(layer.keys, Tensor) else None,
                    values=layer.values[0, :, 0] if isinstance(layer.keys, Tensor) else None,
                    states={name: one[0] for name, one in getattr(layer, "states", {}).items()},
                    is_sliding=bool(layer.is_sliding),
                )
                for layer in cache.layers
            ]
        )

    def row_bytes(self, width: int) -> int:
        """Bytes of a row of ``width`` tokens."""
        kept = [(one, width) for layer in self.layers for one in (layer.keys, layer.values)]
        kept += [(one, 1) for layer in self.layers for one in layer.states.values()]
        return sum(one.nbytes * times for one, times in kept if one is not None)


class PrefixPool:
    """Room for ``rows`` beginnings of at most ``width`` tokens."""

    def __init__(self, shapes: CacheShapes, rows: int, width: int) -> None:
        self.width = width
        self._stores = [_Store(layer, rows, width) for layer in shapes.layers]

    def filling(self, first: int) -> Cache:
        """An empty cache for a call; what it stores becomes the rows from ``first`` on."""
        return _PoolCache([_Filling(store, first) for store in self._stores])

    def continuing(self, rows: Tensor, width: int) -> Cache:
        """A cache for one call whose sequences have read the last ``width`` columns of ``rows``.

        Args:
            rows: ``[B]`` int64 on the model's device; a row may occur many times.
        """
        return _PoolCache([_Continuing(store, rows, width) for store in self._stores])


class _Store:
    """One layer's tensors."""

    def __init__(self, shapes: _LayerShapes, rows: int, width: int) -> None:
        self.is_sliding = shapes.is_sliding
        self.keys = self.values = None
        if shapes.keys is not None and shapes.values is not None:
            self.keys, self.values = (
                one.new_empty(rows, one.shape[0], width, one.shape[1])
                for one in (shapes.keys, shapes.values)
            )
        self.states = {name: t.new_empty(rows, *t.shape) for name, t in shapes.states.items()}


class _PoolCache(WuNengCache):
    """The layers, as one cache: a WuNeng's, so that a WuNeng takes it; any other model does too."""

    def __init__(self, layers: list[Any]) -> None:
        Cache.__init__(self, layers=layers)

    def advance(self, tokens: int) -> None:
        """A WuNeng's call counts its tokens here; a pool's cache serves one call only."""


class _Filling(DynamicLayer):
    """Empty to the model; what it puts goes into rows of the store."""

    def __init__(self, store: _Store, first: int) -> None:
        super().__init__()
        self.is_sliding = store.is_sliding
        self._store, self._first = store, first

    def update(self, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Store ``[B, G, T, N]``; the call itself attends to what it brought."""
        for kept, new in ((self._store.keys, key), (self._store.values, value)):
            assert kept is not None
            rows = kept[self._first : self._first + len(new)]
            free = rows.shape[2] - new.shape[2]
            rows[:, :, free:] = new
            rows[:, :, :free] = 0  # never attended to, but it must be a number
        return key, value

    def get_seq_length(self) -> int:
        return 0

    def get(self, name: str) -> None:
        return None

    def put(self, name: str, value: Tensor) -> None:
        self._store.states[name][self._first : self._first + len(value)] = value


class _Continuing(DynamicLayer):
    """Rows of the store; what the model puts is not kept."""

    def __init__(self, store: _Store, rows: Tensor, width: int) -> None:
        super().__init__()
        self.is_sliding = store.is_sliding
        self._store, self._rows, self._width = store, rows, width

    def update(self, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Keys and values of the rows, the new ``[B, G, T, N]`` behind them."""
        return self._after(self._store.keys, key), self._after(self._store.values, value)

    def _after(self, kept: Tensor | None, new: Tensor) -> Tensor:
        assert kept is not None
        batch, heads, tokens, size = new.shape
        whole = new.new_empty(batch, heads, self._width + tokens, size)
        whole[:, :, self._width :] = new
        before = kept[:, :, kept.shape[2] - self._width :]
        torch.index_select(before, 0, self._rows, out=whole[:, :, : self._width])
        return whole

    def get_seq_length(self) -> int:
        return self._width

    def get(self, name: str) -> Tensor:
        return self._store.states[name].index_select(0, self._rows)

    def put(self, name: str, value: Tensor) -> None: ...
