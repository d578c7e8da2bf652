"""How long a chunk may be, given the decays in it.

The chunked algebra divides by the decay that has accumulated since the chunk began. RWKV-7 keeps at
least 0.545 of the state at every token, so over 32 tokens that is at most e^19.4. A gated delta net
may forget everything in one token: its chunks are as long as their decays allow.

A single token may still ask for more than the shortest chunk can divide by. Its log decay counts as
:func:`lowest_log_decay`, which changes the state by less than e^-30 of what it held before (e^-300
in float64): a millionth of a rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 32
LEAST_CHUNK = 2

#: Log decay that may accumulate in a chunk. Its exponential and the inverse leave float32 eleven
#: decades (float64 forty) for the values that they multiply, before those underflow.
_ROOM = {torch.float32: 60.0, torch.float64: 600.0}


def lowest_log_decay(dtype: torch.dtype) -> float:
    """The least log decay of one token that counts as it is; float32: -30, float64: -300."""
    return -_ROOM[dtype] / LEAST_CHUNK


def allows_full_chunks(log_decay_bound: float | None, dtype: torch.dtype) -> bool:
    """Whether decays that are never below the bound leave chunks their full length, whatever they
    are; None is no bound."""
    return log_decay_bound is not None and log_decay_bound * CHUNK >= -_ROOM[dtype]


def longest_chunk(w: Tensor, dtype: torch.dtype) -> int:
    """The longest power of two, 2 to 32, so that no stretch of so many tokens decays too far.

    Args:
        w: log decays ``[B, T, S, N]``, at least :func:`lowest_log_decay`. Looks at the values, so
            a GPU is waited for.
        dtype: that the chunked form computes in.
    """
    room = -_ROOM[dtype]
    w = w.detach()
    if w.stride(-1) == 0:  # one decay for a whole head
        w = w[..., :1]
    if w.numel() == 0 or float(w.amin()) * CHUNK >= room:
        return CHUNK
    total = w.to(dtype).cumsum(dim=1)
    chunk = CHUNK
    while chunk > LEAST_CHUNK and not _least_sum(total, chunk) >= room:  # not >=: NaN
        chunk //= 2
    return chunk


def _least_sum(total: Tensor, tokens: int) -> float:
    """The least sum over so many tokens in a row, of running sums ``[B, T, S, N]``."""
    least = float(total[:, :tokens].amin())
    if total.shape[1] > tokens:
        least = min(least, float((total[:, tokens:] - total[:, :-tokens]).amin()))
    return least
