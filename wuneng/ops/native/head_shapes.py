"""The shapes that C takes the weights of a layer's state and middle heads for.

torch broadcasts what C would read beyond its end. Legend: D model width, H attention and S state
heads, N head size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from wuneng.ops.head_arguments import LinearPair, LowRank

__all__ = ["Wanted", "are_so", "of_heads", "of_pair"]

#: A tensor, and its shape; -1 for any size.
Wanted = tuple[Tensor | None, tuple[int, ...]]


def are_so(wanted: Iterable[Wanted]) -> bool:
    """Whether every tensor that there is has its shape."""
    return all(x is None or _is(x, shape) for x, shape in wanted)


def _is(x: Tensor, shape: tuple[int, ...]) -> bool:
    found = x.shape
    return len(found) == len(shape) and all(b in (-1, a) for a, b in zip(found, shape, strict=True))


def of_heads(weights: Any, options: Any, width: int) -> Iterator[Wanted]:
    """Of a layer's heads.

    Args:
        weights, options: the ``TokenWeights`` and ``TokenOptions`` of
            :mod:`wuneng.ops.native.hybrid_token`, which asks this.
        width: D.
    """
    heads, size, attention = options.head.heads, options.head.size, options.attention_heads
    own, branches = heads * size, 1 if weights.group_norm is None else 2
    yield (weights.receptance, (own, width))
    for pair in (weights.decay, weights.rate):
        yield from of_pair(pair, width, own)
    for x in weights.head:
        yield (x, (own,) if x is None or x.dim() == 1 else (heads, size))
    yield (weights.branch, (width, branches * own))
    yield from ((x, (heads, size)) for x in (weights.group_norm, weights.beta_or_bias))
    yield (weights.group_mix, (heads, max(1, attention // heads)))
    yield (weights.scale, (1 if weights.scale.shape[:1] == (1,) else heads,))
    additive = options.kind == "additive"
    of_kind = (attention, size) if additive else (heads, 2 * size, size)
    yield (weights.alpha_or_matrix, of_kind)


def of_pair(weights: LowRank | LinearPair | None, width: int, out: int) -> Iterator[Wanted]:
    """Of a low-rank product from ``width`` channels to ``out``, if there is one."""
    if weights is None:
        return
    down, up = weights.down.shape, weights.up.shape
    if isinstance(weights, LinearPair):
        rank = down[0]
        yield from ((weights.down, (rank, width)), (weights.up, (out, rank)))
    else:
        rank = up[0]
        yield from ((weights.down, (width, rank)), (weights.up, (rank, out)))
    yield (weights.bias, (out,))
