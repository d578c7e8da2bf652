"""What a layer's recurrence was fed, and the two rates that it says most with.

:func:`wuneng.ops.wkv7` is fed r, w, k, v, a, b. Legend: T tokens, S state heads, N head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wuneng.layers.state.base import StateHeads
from wuneng.ops import wkv7

__all__ = ["HalfLife", "channel_half_life", "half_life", "in_context_rate", "recurrence_watched"]


class HalfLife(NamedTuple):
    """Tokens after which a channel has kept half, ``[S]`` each over a head's N channels."""

    shortest: Tensor
    median: Tensor
    longest: Tensor


def half_life(w: Tensor) -> HalfLife:
    """Decay half-life of every head, in tokens.

    Of a channel: log(1/2) / (mean over tokens of its log decay), the number of such tokens after
    which half of what it held is left, were nothing removed or written. Infinite where nothing
    decays.

    Args:
        w: log decays ``[T, S, N]``, at most 0.
    """
    ordered = channel_half_life(w.double()).sort(-1).values
    lower, upper = ordered[:, (w.shape[-1] - 1) // 2], ordered[:, w.shape[-1] // 2]
    return HalfLife(ordered[:, 0], (lower + upper) / 2, ordered[:, -1])


def channel_half_life(w: Tensor) -> Tensor:
    """Decay half-life of every channel ``[S, N]``, in tokens, in the precision of ``w``."""
    return (math.log(0.5) / w.mean(0)).abs()  # -0.0 decays by nothing, not by minus nothing


def in_context_rate(b: Tensor) -> Tensor:
    """In-context learning rate ``[T, S]``: the length of b_t.

    b is the rate times the unit removal key. Where one rate holds for a head (Gated DeltaNet, Kimi
    Delta Attention) that is the rate; RWKV-7's channels have a rate each, and it is their root mean
    square, weighted by the squares of the removal key. 0 corrects nothing, 1 replaces what was
    stored under the key, from 1 to 2 it comes back with the other sign.

    Args:
        b: ``[T, S, N]`` of the recurrence.
    """
    return torch.linalg.vector_norm(b.double(), dim=-1)


@contextmanager
def recurrence_watched(
    layer: StateHeads, see: Callable[[Sequence[Tensor]], None]
) -> Iterator[None]:
    """While inside, ``see`` gets the six inputs ``[B, T, S, N]`` of the layer's recurrence, which
    runs as it does otherwise. A kind that does not run ``StateHeads.recurrence`` shows nothing."""
    before = layer.recurrence
    run = before or wkv7

    def recurrence(*inputs: Tensor, **options: Any) -> Any:
        see(inputs)
        return run(*inputs, **options)

    layer.recurrence = recurrence
    try:
        yield
    finally:
        layer.recurrence = before
