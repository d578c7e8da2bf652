"""What a decoded token's one call is given: weights, caches, and how C takes them.

Eight bytes a field, in the order of ``model_token.h``. Legend: B sequences, D model width, G
key/value and S state heads, N head size.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from torch import Tensor

from wuneng.ops.head_arguments import LowRank
from wuneng.ops.native.hybrid_token import TokenOptions, TokenWeights
from wuneng.ops.state_head.native_arguments import address

LAYER = struct.Struct("=20q5d2q")
#: Own key and value and six mixtures; the two low-rank blocks follow.
PARTS = struct.Struct("=8q")
MODEL = struct.Struct("=10qd11q")
CALL = struct.Struct("=9q")
_CACHE = struct.Struct("=11q")
#: Letters of the mixtures.
MIXED = "rwkvag"


class StateWeights(NamedTuple):
    """Of a layer's state and middle heads.

    Attributes:
        own_key, own_value: ``[S * N, D]``, or None for attention's keys and values.
        mixtures: how much of the token before each of ``MIXED`` reads, ``[D]`` or None.
        gate: of the output, or None. Sigma follows its second product where it has a bias, else
            its first.
        residual: logits of how much of the first such layer's values is mixed in, or None.
    """

    weights: TokenWeights
    options: TokenOptions
    own_key: Tensor | None = None
    own_value: Tensor | None = None
    mixtures: tuple[Tensor | None, ...] = (None,) * len(MIXED)
    gate: LowRank | None = None
    residual: LowRank | None = None

    def tensors(self) -> list[Tensor | None]:
        """All of them."""
        own = [self.own_key, self.own_value, *self.mixtures]
        return [*self.weights.tensors(), *own, *(self.gate or ()), *(self.residual or ())]


class LayerWeights(NamedTuple):
    """Of one layer: weights as torch's ``Linear`` has them; biases, the norms of queries and keys
    (``[N]``) and the token shift of keys and values (``[G * N]``), or None.

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
    numbers: tuple[float, ...]
    state: StateWeights | None

    def own(self) -> list[Tensor | None]:
        """Its tensors in order, without those of the state heads."""
        return list(self[:20])

    def tensors(self) -> list[Tensor | None]:
        """All of them."""
        return [*self.own(), *(self.state.tensors() if self.state else ())]


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
    """

    key: Tensor | None = None
    value: Tensor | None = None
    state: Tensor | None = None
    final_state: Tensor | None = None
    carry: Tensor | None = None
    last: Tensor | None = None
    shift_carry: Tensor | None = None
    shift_last: Tensor | None = None

    def tokens(self) -> int:
        """Of its keys, the new one among them; 0 without attention."""
        return 0 if self.key is None else self.key.shape[2]

    def block(self) -> bytes:
        """As C takes it."""
        sequence, head = (0, 0) if self.key is None else self.key.stride()[:2]
        key, value, *states = map(address, self)
        return _CACHE.pack(key, value, self.tokens(), sequence, head, *states)
