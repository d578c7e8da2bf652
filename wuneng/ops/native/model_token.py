"""One decoded token of every layer of a model in one C call (``model_token.c``).

What does not change from token to token (weights' addresses, sizes, working memory) is laid out
once; a call adds the token's own addresses. Nothing here is differentiated.

Legend: B sequences, D model width, H attention, G key/value and S state heads, N head size, F inner
width of the feed-forward layer.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from functools import lru_cache
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from wuneng.ops.cross_head.native import KINDS
from wuneng.ops.head_arguments import LinearPair, LowRank
from wuneng.ops.low_rank.native import NO_LOW_RANK, NOTHING, SIGMA, SIGMA_LAST, low_rank_block
from wuneng.ops.native.compiler import library
from wuneng.ops.native.delta_arguments import NO_DELTA, DeltaWeights
from wuneng.ops.native.hybrid_token import HybridToken, TokenOptions
from wuneng.ops.native.memory import room
from wuneng.ops.native.token_arguments import (
    CALL,
    LAYER,
    MIXED,
    MODEL,
    PARTS,
    Convolutions,
    FinalNorm,
    LayerCache,
    LayerWeights,
    StateWeights,
)
from wuneng.ops.native.token_shapes import have_their_shapes
from wuneng.ops.plain import are_plain
from wuneng.ops.state_head.native_arguments import address

#: Sequences up to which the loops of C beat torch's matrix products; ``model_token.h`` has it too.
MOST_SEQUENCES = 8
#: Keys of one piece of attention, and floats that are kept of it beside N; as in ``model_token.h``.
_PIECE, _PART = 256, 16


class ModelToken:
    """The block of a model for a number of sequences; one call at a time, others wait.

    It says where weights lie: whoever keeps it sees to it that they still lie there.
    """

    def __init__(
        self, layers: Sequence[LayerWeights], norm: FinalNorm, size: int, batch: int
    ) -> None:
        self.size, self.batch, self.threads = size, batch, torch.get_num_threads()
        self.norm = norm
        self.held: list[Any] = [layers]
        self.parts = room(0)
        self.lock = Lock()
        self.block = self._lay_out(layers)

    def _lay_out(self, layers: Sequence[LayerWeights]) -> bytes:
        inner, width = layers[0].gate.shape
        attention = next((x for x in layers if x.q is not None), None)
        queries, keys = (0, 0) if attention is None else _widths(attention)
        self.heads, batch = queries // self.size, self.batch
        first = next((i for i, x in enumerate(layers) if x.state and not x.state.delta), -1)
        states = max((x.options.head.heads * self.size for x in _states(layers)), default=0)
        sizes = (queries, keys, keys, queries, queries, width, inner, queries, *(3 * [states]))
        inputs = self.threads * (1 + len(MIXED)) * width
        memory = [self._memory(batch * n) for n in (*sizes, inputs)]
        blocks = [self._layer(x, i == first) for i, x in enumerate(layers)]
        laid = self._kept(b"".join(blocks))
        return MODEL.pack(
            *(len(layers), batch, self.threads, width, self.heads, keys // self.size, inner, first),
            *(laid, self.norm.weight.data_ptr(), self.norm.eps),
            *memory,
        )

    def _layer(self, layer: LayerWeights, is_first: bool) -> bytes:
        hybrid, parts, state = 0, 0, layer.state
        if state is not None:
            token = HybridToken(state.weights, state.options, self.batch)
            self.held.append(token)
            hybrid, parts = self._kept(token.block), self._kept(self._parts(state, is_first))
        conv = _convolutions(layer.conv)
        return LAYER.pack(*map(address, layer.own()), *conv, *layer.numbers, hybrid, parts)

    def _parts(self, state: StateWeights, is_first: bool) -> bytes:
        """``is_first``: of all layers with state heads, which has no earlier values to mix in."""
        gate = residual = NO_LOW_RANK
        if state.gate is not None:
            last = isinstance(state.gate, LinearPair) or state.gate.bias is not None
            gate = self._low_rank(state.gate, SIGMA_LAST if last else SIGMA)
        if state.residual is not None and not is_first:
            residual = self._low_rank(state.residual, NOTHING)
        own = map(address, (state.own_key, state.own_value, *state.mixtures))
        parts = PARTS.pack(*own, *_convolutions(state.conv)) + gate + residual
        return parts + self._delta(state.delta, state.options)

    def _delta(self, delta: DeltaWeights | None, options: TokenOptions) -> bytes:
        if delta is None:
            return NO_DELTA
        heads, width = options.head.heads, options.head.heads * options.head.size
        memory = [self._memory(self.batch * n) for n in (heads, heads, width)]
        return delta.block(width, *memory)

    def _low_rank(self, weights: LowRank | LinearPair, between: int) -> bytes:
        rank, width = weights.up.shape
        if isinstance(weights, LinearPair):
            rank, width = width, rank
        memory = self._memory(self.batch * rank), self._memory(self.batch * width)
        return low_rank_block(self.batch, 0, weights, between, *memory)

    def _kept(self, block: bytes) -> int:
        """The address of a block that stays."""
        laid = ctypes.create_string_buffer(block)
        self.held.append(laid)
        return ctypes.addressof(laid)

    def _memory(self, floats: int) -> int:
        held = room(floats)
        self.held.append(held)
        return held.data_ptr()

    def __call__(
        self,
        hidden: Tensor,
        rotation: tuple[Tensor, Tensor] | None,
        seen: Tensor | None,
        caches: Sequence[LayerCache],
    ) -> Tensor:
        """Advance by one token.

        Args:
            hidden: ``[B, 1, D]`` float32.
            rotation: cosines and sines, contiguous float32 ``[B or 1, 1, N]``; None without
                attention.
            seen: contiguous bool ``[B, columns]``, false at pads, of which a layer's keys are the
                last ones; None without pads.
            caches: one for each layer.

        Returns:
            ``[B, 1, D]`` after the last layer and the norm.

        Raises:
            MemoryError: none was left for the call's counters.
        """
        hidden = hidden.clone(memory_format=torch.contiguous_format)
        cos, sin = (None, None) if rotation is None else rotation
        blocks = ctypes.create_string_buffer(b"".join(cache.block() for cache in caches))
        pieces = -(-max(cache.tokens() for cache in caches) // _PIECE)
        floats = self.batch * self.heads * pieces * (self.size + _PART)
        with self.lock:
            if self.parts.numel() < floats:
                self.parts = room(2 * floats)
            call = CALL.pack(
                *map(address, (hidden, cos, sin)),
                self.size if cos is not None and cos.shape[0] > 1 else 0,
                *((0, 0) if seen is None else (seen.data_ptr(), seen.shape[1])),
                *(pieces, self.parts.data_ptr(), ctypes.addressof(blocks)),
            )
            if _kernels(self.size).model_token(self.block, call):
                raise MemoryError("no memory for a decoded token's counters")
        return hidden


def make(
    layers: Sequence[LayerWeights], norm: FinalNorm, size: int, batch: int
) -> ModelToken | None:
    """A block, or None where these weights do not go through C."""
    tensors = [norm.weight, *(x for layer in layers for x in layer.tensors())]
    if not are_plain(*tensors) or not all(x is None or _is_served(x) for x in tensors):
        return None
    inner, width = layers[0].gate.shape
    if width % 4 or inner % 4 or batch > MOST_SEQUENCES or norm.weight.shape != (width,):
        return None
    options = [state.options for state in _states(layers)]
    if any(x.kind not in KINDS or x.head.size != size for x in options):
        return None
    attention = {_widths(layer) for layer in layers if layer.q is not None}
    if len({x.head.heads for x in options}) > 1 or len(attention) > 1:
        return None
    queries, keys = next(iter(attention), (0, 0))
    if not all(have_their_shapes(x, (width, queries, keys, inner, size)) for x in layers):
        return None
    return None if library(size) is None else ModelToken(layers, norm, size, batch)


def _convolutions(weights: Convolutions) -> list[int]:
    """Address and number of taps of each; zeros where there is none."""
    return [n for x in weights for n in ((0, 0) if x is None else (x.data_ptr(), x.shape[1]))]


def _states(layers: Sequence[LayerWeights]) -> Iterator[StateWeights]:
    return (layer.state for layer in layers if layer.state is not None)


def _widths(layer: LayerWeights) -> tuple[int, int]:
    """Of queries, and of keys or values."""
    assert layer.q is not None
    assert layer.k is not None
    return layer.q.shape[0], layer.k.shape[0]


def _is_served(x: Tensor) -> bool:
    return x.is_cpu and x.dtype == torch.float32 and x.is_contiguous()


@lru_cache
def _kernels(size: int) -> Any:
    kernels = library(size)
    assert kernels is not None
    kernels.model_token.restype = ctypes.c_int64
    return kernels
