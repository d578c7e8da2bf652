"""Snapshots: a head reads its state as it stood at earlier token positions, beside the state now.

For the token at absolute index p (0-based) of its sequence, snapshot j is the state after
``(p // every - j) * every`` tokens, and a zero state where that is not positive. With weights
gamma over (now, snapshot 0, snapshot 1, ...):

    y_t = r_t ( gamma_{t,0} S_t + sum_j gamma_{t,1+j} Snap_j )^T

The boundaries lie at absolute positions, so a sequence that is fed in pieces reads the same states
as one that is fed whole; ``position`` and ``ring`` carry that over from piece to piece. Nobody has
restated the paper's own formula for reading several token positions: this is our reading of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Snapshots:
    """What the operator needs to read n snapshots beside the current state.

    Attributes:
        every: tokens between two snapshots; a multiple of 16.
        weights: gamma ``[B, T, S, 1 + n]``, floating: over now, then n snapshots, newest first. The
            operator does not normalise them.
        ring: ``[B or sequences, n, S, N, N]`` in the state's dtype: the n newest snapshots that the
            next token reads, newest first, as the previous call returned them. None at the start.
        position: ``[B or sequences]`` int64, tokens this sequence has seen before this call. None
            at the start (zero). ``ring`` and ``position`` are given together or not at all.
    """

    every: int
    weights: Tensor
    ring: Tensor | None = None
    position: Tensor | None = None

    @property
    def count(self) -> int:
        """n, the number of snapshots beside the state now."""
        return self.weights.shape[-1] - 1


def boundary(position: int, newest: int, every: int) -> int:
    """Tokens behind snapshot ``newest`` for the token at ``position``; not positive: zero state."""
    return (position // every - newest) * every
