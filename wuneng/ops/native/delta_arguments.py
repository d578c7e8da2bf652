"""What a decoded token's call is given of the delta rule's heads (``delta_token.c``).

Eight bytes a field, in the order of ``model_token.h``. Legend: B sequences, D model width, S state
heads, N head size.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from torch import Tensor

from wuneng.ops.state_head.native_arguments import address

_DELTA = struct.Struct("=9q4q2d3q")
#: The block of heads that are RWKV-7's.
NO_DELTA = bytes(_DELTA.size)


class DeltaWeights(NamedTuple):
    """What the delta rule's heads (``wuneng.layers.state``) have of their own; None is without.

    Attributes:
        beta: ``[S, D]``.
        step: ``[S, D]``, of one decay for a head; None: the decay's logits are low rank.
        log_rate, step_bias: ``[S]``; ``[S]`` or, without ``step``, ``[S * N]``.
        norm: ``[S, N]``, RMS norm of what is read.
        gate: ``[S * N, D]``, of a silu gate.
        shift: of r, k, v ``[S * N]``, in that order; ``letters`` says where a carry has them.
        a_max, norm_eps: numbers.
    """

    beta: Tensor
    step: Tensor | None
    log_rate: Tensor
    step_bias: Tensor
    norm: Tensor | None
    gate: Tensor | None
    shift: tuple[Tensor | None, ...]
    letters: str
    a_max: float
    norm_eps: float

    def tensors(self) -> list[Tensor | None]:
        """All of them, in C's order."""
        return [*self[:6], *self.shift]

    def block(self, width: int, beta_out: int, step_out: int, gate_out: int) -> bytes:
        """As C takes it.

        Args:
            width: S * N.
            beta_out, step_out, gate_out: addresses of working memory ``[B, S]`` twice and
                ``[B, S * N]``.
        """
        slots = [self.letters.find(letter) for letter in "rkv"]
        numbers = (len(self.letters) * width, self.a_max, self.norm_eps)
        return _DELTA.pack(
            *map(address, self.tensors()), *slots, *numbers, beta_out, step_out, gate_out
        )
