"""One decoded token of a layer's state and middle heads in one C call.

Decoding runs the same little arithmetic in a layer with the same weights again and again, so what
does not change (sizes, weights' addresses, working memory) is laid out once in a block; a call adds
the token's own addresses. Nothing here is differentiated.

Legend: B sequences, D model width, H attention, G key/value and S state heads, N head size.
"""

from __future__ import annotations

import ctypes
import struct
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wuneng.ops.cross_head.native import CROSS_HEAD, KINDS
from wuneng.ops.head_arguments import HeadOptions, HeadWeights, LinearPair, LowRank
from wuneng.ops.low_rank.native import NO_LOW_RANK, NOTHING, PRODUCT, TANH, low_rank_block
from wuneng.ops.native.compiler import library
from wuneng.ops.native.few_tokens import MOST_PRODUCTS
from wuneng.ops.native.head_shapes import are_so, of_heads
from wuneng.ops.native.memory import room
from wuneng.ops.plain import are_plain
from wuneng.ops.state_head.native_arguments import ABSENT, NO_BACKWARD, address, forward_block

_SLOTS = struct.Struct("=3q")
_INPUTS = struct.Struct("=12q")


class TokenWeights(NamedTuple):
    """What the layer has learned: shapes as :func:`wuneng.ops.head_projections`,
    :func:`wuneng.ops.state_head` and :func:`wuneng.ops.cross_head` say; branch ``[D, 2 * S * N]``,
    or ``[D, S * N]`` without middle heads, whose own tensors are None then.

    ``rate`` is None for heads whose decay and removal vectors are made elsewhere
    (``delta_token.c``); ``decay`` may be None too then."""

    receptance: Tensor
    decay: LowRank | LinearPair | None
    rate: LowRank | None
    head: HeadWeights
    scale: Tensor
    group_mix: Tensor | None
    group_norm: Tensor | None
    alpha_or_matrix: Tensor | None
    beta_or_bias: Tensor | None
    branch: Tensor

    def tensors(self) -> list[Tensor | None]:
        """All of them in order."""
        narrow = [*(self.decay or ()), *(self.rate or ())]
        return [self.receptance, *narrow, *self.head, *self[4:]]


class TokenOptions(NamedTuple):
    """What is not a tensor: the state heads' options, and the middle heads' kind (``none`` too), H
    and eps."""

    head: HeadOptions
    kind: str
    attention_heads: int
    eps: float


def products(weights: TokenWeights, size: int, batch: int) -> int:
    """Multiplications of a call, about."""
    narrow = (*(weights.decay or ()), *(weights.rate or ()))
    tensors = (weights.receptance, *narrow, weights.branch)
    sizes = [x.numel() for x in (*tensors, weights.alpha_or_matrix) if x is not None]
    return batch * (sum(sizes) + 6 * weights.receptance.shape[0] * size)


class HybridToken:
    """The block of one layer for a number of sequences. Not for two threads at once."""

    def __init__(self, weights: TokenWeights, options: TokenOptions, batch: int) -> None:
        self.options, self.batch = options, batch
        self.identity = _identity(weights)
        self.width = options.head.heads * options.head.size
        self.model_width = weights.branch.shape[0]
        self.held: list[Any] = [weights]
        self.block = self._lay_out(weights)

    def fits(self, weights: TokenWeights, batch: int) -> bool:
        """Whether the block still says where these weights lie."""
        return batch == self.batch and self.identity == _identity(weights)

    def _lay_out(self, weights: TokenWeights) -> bytes:
        batch, width, inner = self.batch, self.width, self.model_width
        r, w, a, readout = (self._memory(width) for _ in range(4))
        is_raw = weights.rate is not None
        wide = weights.branch.shape[1]
        branch = self._memory(wide)
        receptance = (inner, width, 0, weights.receptance.data_ptr(), r)
        return b"".join(
            (
                PRODUCT.pack(batch, *receptance),
                self._low_rank(weights.decay, TANH if is_raw else NOTHING, w),
                self._low_rank(weights.rate, NOTHING, a),
                self._head(weights.head, is_raw, r, w, a, readout),
                self._cross_head(weights, readout, branch),
                PRODUCT.pack(batch, wide, inner, branch, weights.branch.data_ptr(), 0),
                _SLOTS.pack(*(self.options.head.letters.find(letter) for letter in "rkv")),
            )
        )

    def _memory(self, width: int) -> int:
        """The address of working memory ``[B, width]``."""
        held = room(self.batch, width)
        self.held.append(held)
        return held.data_ptr()

    def _low_rank(self, weights: LowRank | LinearPair | None, between: int, out: int) -> bytes:
        if weights is None:
            return NO_LOW_RANK
        rank = weights.down.shape[0 if isinstance(weights, LinearPair) else 1]
        return low_rank_block(self.batch, 0, weights, between, self._memory(rank), out)

    def _head(self, weights: HeadWeights, is_raw: bool, r: int, w: int, a: int, out: int) -> bytes:
        options, width = self.options.head, self.width
        bounds = torch.arange(self.batch + 1, device="cpu")
        self.held.append(bounds)
        inputs = ((r, width), (w, width), ABSENT, ABSENT, (a, width), ABSENT, ABSENT)
        carry = (*(0,) * 6, len(options.letters) * width)
        forward = forward_block(
            (self.batch, options.heads, 1, 1),
            bounds.data_ptr(),
            (is_raw, options.a_max, options.norm_eps),
            inputs,
            tuple(address(x) for x in weights),
            carry,
            (0, 0),
            (out, width),
            (0, 0),
        )
        return forward + NO_BACKWARD

    def _cross_head(self, weights: TokenWeights, readout: int, branch: int) -> bytes:
        options = self.options
        numbers = (self.batch, options.attention_heads, options.head.heads, KINDS[options.kind])
        tensors = (weights.scale, weights.group_mix, weights.group_norm, weights.alpha_or_matrix)
        return CROSS_HEAD.pack(
            *numbers,
            weights.scale.numel(),
            options.eps,
            0,
            readout,
            *map(address, tensors),
            address(weights.beta_or_bias),
            0,
            branch,
        )

    def __call__(
        self,
        x: Tensor,
        key: Tensor,
        value: Tensor,
        attention: Tensor,
        state: Tensor | None,
        carry: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Advance by one token.

        Args:
            x, key, value, attention: contiguous float32 ``[B, 1, D]``, ``[B, 1, G * N]`` twice with
                G >= S, ``[B, 1, H * N]``.
            state, carry: as :func:`wuneng.ops.state_head`; contiguous float32 or None.

        Returns:
            A' ``[B, 1, H * N]`` (A itself unless the kind is additive), the branch's contribution
            ``[B, 1, D]``, the new state and the new carry (None without shifted letters).
        """
        options, batch = self.options.head, self.batch
        final = room(batch, options.heads, options.size, options.size)
        branch = room(batch, 1, self.model_width)
        last = room(batch, len(options.letters) * self.width) if options.letters else None
        changed = torch.empty_like(attention) if self.options.kind == "additive" else None
        inputs = _INPUTS.pack(
            x.data_ptr(),
            key.data_ptr(),
            value.data_ptr(),
            attention.data_ptr(),
            key.shape[2],
            value.shape[2],
            address(state),
            final.data_ptr(),
            address(carry),
            address(last),
            address(changed),
            branch.data_ptr(),
        )
        _kernels(options.size).hybrid_token(self.block, inputs)
        return attention if changed is None else changed, branch, final, last


def is_available(size: int) -> bool:
    """Whether the C kernels exist on this machine and are wanted now."""
    return library(size) is not None


def make(weights: TokenWeights, options: TokenOptions, batch: int) -> HybridToken | None:
    """A block, or None where these weights do not go through C (see the conditions)."""
    tensors = weights.tensors()
    plain = are_plain(*tensors) and all(
        x is None or (x.is_cpu and x.dtype == torch.float32 and x.is_contiguous()) for x in tensors
    )
    few = plain and products(weights, options.head.size, batch) <= MOST_PRODUCTS
    if not few or weights.branch.shape[0] % 4 or options.kind not in KINDS:
        return None
    if not are_so(of_heads(weights, options, weights.receptance.shape[1])):
        return None
    return None if library(options.head.size) is None else HybridToken(weights, options, batch)


def _identity(weights: TokenWeights) -> list[int]:
    return [0 if x is None else x.data_ptr() for x in weights.tensors()]


@lru_cache
def _kernels(size: int) -> Any:
    """Loaded so that calls keep the interpreter's lock: they take microseconds, and a block's
    working memory is then one thread's at a time."""
    kernels = library(size)
    assert kernels is not None
    locked = ctypes.PyDLL(kernels._name, handle=kernels._handle)
    locked.hybrid_token.restype = None
    return locked
