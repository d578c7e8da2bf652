"""What a decoded token's one call is given: weights, caches, and how C takes them.

Eight bytes a field, in the order of ``model_token.h``. Legend: B sequences, D model width, G
key/value and S state heads, N head size.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from torch import Tensor

from wuneng.ops.head_arguments import LinearPair, LowRank
from wuneng.ops.native.delta_arguments import DeltaWeights
from wuneng.ops.native.hybrid_token import TokenOptions, TokenWeights
from wuneng.ops.state_head.native_arguments import address

LAYER = struct.Struct("=21q6q5d2q")
#: Own key and value, six mixtures, three convolutions; two low-rank blocks and the delta
#: rule's follow.
PARTS = struct.Struct("=8q6q")
MODEL = struct.Struct("=10qd12q")
CALL = struct.Struct("=9q")
_CACHE = struct.Struct("=23q")
#: Letters of the mixtures.
MIXED = "rwkvag"


#: Of r, k, v, or of q, k, v: short convolutions ``[C, taps]``.
Convolutions = tuple[Tensor | None, Tensor | None, Tensor | None]
NO_CONVOLUTIONS: Convolutions = (None, None, None)


class StateWeights(NamedTuple):
    """Of a layer's state and middle heads.

    Attributes:
        own_key, own_value: ``[S * N, D]``, or None for attention's keys and values.
        mixtures: how much of the token before each of ``MIXED`` reads, ``[D]`` or None.
        gate: of the output, or None. Sigma follows its second product where it has a bias, else
            its first.
        residual: logits of how much of the first such layer's values is mixed in, or None.
        conv: of r, k, v.
        delta: of the delta rule's heads; None of RWKV-7's.
    """

    weights: TokenWeights
    options: TokenOptions
    own_key: Tensor | None = None
    own_value: Tensor | None = None
    mixtures: tuple[Tensor | None, ...] = (None,) * len(MIXED)
    gate: LowRank | LinearPair | None = None
    residual: LowRank | None = None
    conv: Convolutions = NO_CONVOLUTIONS
    delta: DeltaWeights | None = None

    def tensors(self) -> list[Tensor | None]:
        """All of them."""
        own = [self.own_key, self.own_value, *self.mixtures, *self.conv]
        delta = [] if self.delta is None else self.delta.tensors()
        narrow = [*(self.gate or ()), *(self.residual or ())]
        return [*self.weights.tensors(), *own, *narrow, *delta]


class LayerWeights(NamedTuple):
    """Of one layer: weights as torch's ``Linear`` has them; biases, the norms of queries and keys
    (``[N]``), the token shift of keys and values (``[G * N]``), a gate on attention's output
    (``[H * N, D]``), or None; short convolutions of queries, keys and values.

    Without attention all of its own are None. ``numbers`` are eps of the norms of input, queries,
    keys and feed-forward, and attention's scaling.
    """

    input_norm: Tensor
    q: Tensor | None
    k: Tensor | None
    v: Tensor | None
    o: Tensor | None
    q_bias: Tensor | None
    k_bias: Tensor | None
    v_bias: Tensor | None
    o_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    k_shift: Tensor | None
    v_shift: Tensor | None
    feed_norm: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor
    gate_bias: Tensor | None
    up_bias: Tensor | None
    down_bias: Tensor | None
    output_gate: Tensor | None
    conv: Convolutions
    numbers: tuple[float, ...]
    state: StateWeights | None

    def own(self) -> list[Tensor | None]:
        """Its tensors in order, without those of the state heads."""
        return list(self[:21])

    def tensors(self) -> list[Tensor | None]:
        """All of them."""
        return [*self.own(), *self.conv, *(self.state.tensors() if self.state else ())]


class FinalNorm(NamedTuple):
    """After the last layer: ``[D]`` and its eps."""

    weight: Tensor
    eps: float


class LayerCache(NamedTuple):
    """Of one layer, float32; a part that the layer has not is None.

    Attributes:
        key, value: ``[B, G, any, N]`` whose last token is to be written, of equal strides.
        state, final_state: ``[B, S, N, N]`` before (None for zero) and after the token.
        carry, last: of the state heads' token shift before (None for zero) and after.
        shift_carry, shift_last: the same of attention's, ``[B, 2 * G * N]``.
        convolutions: the tokens that short convolutions read, ``[B, (taps - 1) * C]`` before (None
            for zero) and after, of the state heads' r, k, v and then of attention's q, k, v.
    """

    key: Tensor | None = None
    value: Tensor | None = None
    state: Tensor | None = None
    final_state: Tensor | None = None
    carry: Tensor | None = None
    last: Tensor | None = None
    shift_carry: Tensor | None = None
    shift_last: Tensor | None = None
    convolutions: tuple[Tensor | None, ...] = (None,) * 12

    def tokens(self) -> int:
        """Of its keys, the new one among them; 0 without attention."""
        return 0 if self.key is None else self.key.shape[2]

    def block(self) -> bytes:
        """As C takes it."""
        sequence, head = (0, 0) if self.key is None else self.key.stride()[:2]
        key, value, *states = map(address, (*self[:8], *self.convolutions))
        return _CACHE.pack(key, value, self.tokens(), sequence, head, *states)
