"""Where things stand in a sequence: random places, random orders, equal shares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "balanced",
    "fact_places",
    "front_part",
    "orders",
    "query_places",
    "some_of",
    "spread",
]


def some_of(
    random: np.random.Generator, rows: int, population: int, count: int
) -> NDArray[np.int64]:
    """``[rows, count]``: different numbers below ``population``, in random order."""
    return np.argsort(random.random((rows, population)), axis=1)[:, :count]


def orders(random: np.random.Generator, rows: int, count: int) -> NDArray[np.int64]:
    """``[rows, count]``: the numbers below ``count`` in random order."""
    return some_of(random, rows, count, count)


def balanced(random: np.random.Generator, rows: int, count: int, values: int) -> NDArray[np.int64]:
    """``[rows, count]``: numbers below ``values`` in random order, each as often as any other.

    Where ``count`` is no multiple of ``values``, which of them are there once more is random, so
    that how often a number occurs tells next to nothing about where it stands.
    """
    begin = random.integers(0, values, (rows, 1))
    once = (np.arange(count) + begin) % values
    return np.take_along_axis(once, orders(random, rows, count), 1)


def spread(
    random: np.random.Generator, rows: int, sizes: Sequence[int], length: int
) -> NDArray[np.int64]:
    """``[rows, units]``: the first position of each of several units of these ``sizes``, which
    follow one another with random gaps and all lie within ``length`` positions."""
    free = length - sum(sizes)
    gaps = np.sort(random.integers(0, free + 1, (rows, len(sizes))), axis=1)
    return gaps + np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)


def front_part(facts: int, queries: int, length: int) -> int:
    """Positions of the front part, which holds facts of two tokens; queries of one token are in the
    rest. The parts are in proportion to the tokens that they need."""
    return max(2 * facts, 2 * facts * length // (2 * facts + queries))


def fact_places(
    random: np.random.Generator, rows: int, facts: int, front: int
) -> NDArray[np.int64]:
    """``[rows, facts]``: first positions of facts of two tokens, strewn over the front part."""
    return 2 * np.sort(some_of(random, rows, front // 2, facts), axis=1)


def query_places(
    random: np.random.Generator, rows: int, queries: int, front: int, length: int
) -> NDArray[np.int64]:
    """``[rows, queries]``: positions of queries, strewn over what follows the front part."""
    return front + np.sort(some_of(random, rows, length - front, queries), axis=1)
