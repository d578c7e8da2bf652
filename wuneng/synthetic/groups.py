"""Finite groups as multiplication tables: cyclic groups and permutations."""

from __future__ import annotations

from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from wuneng.recipe.task_settings import GroupTask

__all__ = ["cyclic_table", "group_table", "permutation_table", "running_products"]


def group_table(settings: GroupTask) -> NDArray[np.int64]:
    """``[elements, elements]``: the products of the group that a task names."""
    modulus = settings.modulus
    return cyclic_table(modulus) if modulus else permutation_table(int(settings.group[1:]))


def cyclic_table(order: int) -> NDArray[np.int64]:
    """``[order, order]``: addition modulo ``order``; 2 is parity."""
    elements = np.arange(order)
    return (elements[:, None] + elements) % order


def permutation_table(points: int) -> NDArray[np.int64]:
    """``[points!, points!]``: element (p, q) is "first p, then q".

    The permutations are numbered in lexicographic order; 0 is the identity.
    """
    elements = np.array(list(permutations(range(points))))
    # (p then q)(i) = q[p[i]]
    products = elements[:, elements].transpose(1, 0, 2)  # [p, q, i]
    digits = points ** np.arange(points)[::-1]
    codes = elements @ digits
    return np.searchsorted(codes, products @ digits)


def running_products(elements: NDArray[np.int64], table: NDArray[np.int64]) -> NDArray[np.int64]:
    """``[R, L]`` elements to ``[R, L]`` products of each one with all before it.

    Doubles the reach of every product log2(L) times instead of walking along L.
    """
    products = elements.copy()
    reach = 1
    while reach < products.shape[1]:
        products[:, reach:] = table[products[:, :-reach], products[:, reach:]]
        reach *= 2
    return products
