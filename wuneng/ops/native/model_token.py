"""One decoded token of every layer of a model in one C call (``model_token.c``).

What does not change from token to token (weights' addresses, sizes, working memory) is laid out
once; a call adds the token's own addresses. Nothing here is differentiated.

Legend: B sequences, D model width, H attention, G key/value and S state heads, N head size, F inner
width of the feed-forward layer.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from functools import lru_cache
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wuneng.ops.cross_head.native import KINDS
from wuneng.ops.native.compiler import library
from wuneng.ops.native.hybrid_token import HybridToken, TokenOptions, TokenWeights
from wuneng.ops.plain import are_plain
from wuneng.ops.state_head.native_arguments import address

#: Sequences up to which the loops of C beat torch's matrix products; ``model_token.h`` has it too.
MOST_SEQUENCES = 8
#: Keys of one piece of attention, and floats that are kept of it beside N; as in ``model_token.h``.
_PIECE, _PART = 256, 16
_LAYER = struct.Struct("=18q5d3q")
_MODEL = struct.Struct("=9qd10q")
_CACHE = struct.Struct("=9q")
_CALL = struct.Struct("=9q")


class StateWeights(NamedTuple):
    """Of a layer's state and middle heads; own projections are ``[S * N, D]`` or None."""

    weights: TokenWeights
    options: TokenOptions
    own_key: Tensor | None
    own_value: Tensor | None


class LayerWeights(NamedTuple):
    """Of one layer: weights as torch's ``Linear`` has them; biases, and the norms of queries and
    keys (``[N]``), or None."""

    input_norm: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    q_bias: Tensor | None
    k_bias: Tensor | None
    v_bias: Tensor | None
    o_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    feed_norm: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor
    gate_bias: Tensor | None
    up_bias: Tensor | None
    down_bias: Tensor | None
    numbers: tuple[float, ...]
    """eps of the norms of input, queries, keys and feed-forward, and attention's scaling: five."""
    state: StateWeights | None

    def tensors(self) -> list[Tensor | None]:
        """All of them in order."""
        own: list[Tensor | None] = list(self[:18])
        if self.state is not None:
            own += [*self.state.weights.tensors(), self.state.own_key, self.state.own_value]
        return own


class FinalNorm(NamedTuple):
    """After the last layer: ``[D]`` and its eps."""

    weight: Tensor
    eps: float


class LayerCache(NamedTuple):
    """Of one layer, float32: keys and values ``[B, G, any, N]`` whose last token is to be written,
    of equal strides; the state heads' tensors as :class:`HybridToken` takes and returns them."""

    key: Tensor
    value: Tensor
    state: Tensor | None = None
    final_state: Tensor | None = None
    carry: Tensor | None = None
    last: Tensor | None = None

    def block(self) -> bytes:
        """As C takes it."""
        key, states = self.key, (address(x) for x in self[2:])
        sequence, head = key.stride()[:2]
        places = (key.data_ptr(), self.value.data_ptr(), key.shape[2], sequence, head)
        return _CACHE.pack(*places, *states)


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
        self.parts = torch.empty(0)
        self.lock = Lock()
        self.block = self._lay_out(layers)

    def _lay_out(self, layers: Sequence[LayerWeights]) -> bytes:
        first, batch = layers[0], self.batch
        width, inner = first.q.shape[1], first.gate.shape[0]
        self.heads = first.q.shape[0] // self.size
        queries, keys = first.q.shape[0], first.k.shape[0]
        states = max(x.state.weights.receptance.shape[0] if x.state else 0 for x in layers)
        sizes = (queries, keys, keys, queries, queries, width, inner, states, states)
        memory = [self._memory(batch * n) for n in (*sizes, self.threads * width)]
        laid = ctypes.create_string_buffer(b"".join(map(self._layer, layers)))
        self.held.append(laid)
        return _MODEL.pack(
            *(len(layers), batch, self.threads, width, self.heads, keys // self.size, inner),
            *(ctypes.addressof(laid), self.norm.weight.data_ptr(), self.norm.eps),
            *memory,
        )

    def _layer(self, layer: LayerWeights) -> bytes:
        hybrid, own, state = 0, (0, 0), layer.state
        if state is not None:
            block = HybridToken(state.weights, state.options, self.batch)
            laid = ctypes.create_string_buffer(block.block)
            self.held += [block, laid]
            hybrid, own = ctypes.addressof(laid), (address(state.own_key), address(state.own_value))
        return _LAYER.pack(*(address(x) for x in layer[:18]), *layer.numbers, hybrid, *own)

    def _memory(self, floats: int) -> int:
        held = torch.empty(floats)
        self.held.append(held)
        return held.data_ptr()

    def __call__(
        self,
        hidden: Tensor,
        rotation: tuple[Tensor, Tensor],
        seen: Tensor | None,
        caches: Sequence[LayerCache],
    ) -> Tensor:
        """Advance by one token.

        Args:
            hidden: ``[B, 1, D]`` float32.
            rotation: cosines and sines, contiguous float32 ``[B or 1, 1, N]``.
            seen: contiguous bool ``[B, columns]``, false at pads, of which a layer's keys are the
                last ones; None without pads.
            caches: one for each layer.

        Returns:
            ``[B, 1, D]`` after the last layer and the norm.

        Raises:
            MemoryError: none was left for the call's counters.
        """
        hidden = hidden.clone(memory_format=torch.contiguous_format)
        cos, sin = rotation
        blocks = ctypes.create_string_buffer(b"".join(cache.block() for cache in caches))
        pieces = -(-max(cache.key.shape[2] for cache in caches) // _PIECE)
        floats = self.batch * self.heads * pieces * (self.size + _PART)
        with self.lock:
            if self.parts.numel() < floats:
                self.parts = torch.empty(2 * floats)
            call = _CALL.pack(
                *(hidden.data_ptr(), cos.data_ptr(), sin.data_ptr()),
                self.size if cos.shape[0] > 1 else 0,
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
    first = layers[0]
    shapes = [(*(x.shape for x in layer[1:5]), layer.gate.shape) for layer in layers]
    if any(shape != shapes[0] for shape in shapes):
        return None
    if first.q.shape[1] % 4 or first.gate.shape[0] % 4 or batch > MOST_SEQUENCES:
        return None
    states = [layer.state for layer in layers if layer.state is not None]
    if any(x.options.kind not in KINDS or x.options.head.size != size for x in states):
        return None
    return None if library(size) is None else ModelToken(layers, norm, size, batch)


def _is_served(x: Tensor) -> bool:
    return x.is_cpu and x.dtype == torch.float32 and x.is_contiguous()


@lru_cache
def _kernels(size: int) -> Any:
    kernels = library(size)
    assert kernels is not None
    kernels.model_token.restype = ctypes.c_int64
    return kernels
