"""What an evaluation computes once, and in which batches: decisions on token ids alone.

Several answers to one question, the questions of one MMLU subject with its solved examples, the
two halves of a WinoGrande sentence: many inputs begin alike. :func:`shared_prefixes` finds the
beginnings worth computing once; :func:`batches` cuts anything with a length into forward calls of
least cost. Costs are counted in tokens that a forward call computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

__all__ = ["SharedPrefix", "batches", "common_length", "pools", "shared_prefixes"]

# Keeping a beginning's cache and copying it for each ending costs about as much as so many tokens.
_SHARING_PRICE = 16
# An ending attends to as many columns as the longest beginning beside it has. So many beginnings
# have endings enough to be cut into batches of one length; beyond them, much shorter ones wait.
_POOL_ROWS = 64
_POOL_EVENNESS = 0.5


@dataclass(frozen=True)
class SharedPrefix:
    """Inputs (by their places in the list) that begin with the same ``length`` tokens."""

    members: tuple[int, ...]
    length: int


@dataclass
class _Node:
    """Neighbours in sorted order, from place ``left`` on, that share ``depth`` tokens."""

    depth: int
    left: int
    saved: int = 0
    chosen: list[tuple[int, int, int]] = field(default_factory=list)  # left, right, depth

    def take(self, inner: _Node) -> None:
        self.saved += inner.saved
        self.chosen += inner.chosen

    def close(self, right: int) -> _Node:
        """Share here, unless the groups further in save more together."""
        saved = (right - self.left) * self.depth - _SHARING_PRICE
        if saved > self.saved:
            self.saved, self.chosen = saved, [(self.left, right, self.depth)]
        return self


def shared_prefixes(inputs: Sequence[list[int]]) -> tuple[list[SharedPrefix], list[int]]:
    """The beginnings to compute once, such that the fewest tokens are computed in all.

    Each input belongs to one group at most. Sorted, inputs that begin alike are neighbours, and
    groups that could be formed are the nodes of a tree (a group within a group shares more
    tokens); the best choice of nodes is found from the leaves up.

    Args:
        inputs: token ids, no two alike.

    Returns:
        The groups, and the inputs that belong to none.
    """
    order = sorted(range(len(inputs)), key=inputs.__getitem__)
    stack = [_Node(0, 0)]
    for place in range(1, len(order) + 1):
        depth = 0
        if place < len(order):
            depth = common_length(inputs[order[place - 1]], inputs[order[place]])
        left = place - 1
        while depth < stack[-1].depth:
            inner = stack.pop().close(place - 1)
            left = inner.left
            if depth > stack[-1].depth:
                stack.append(_Node(depth, left))
            stack[-1].take(inner)
        if depth > stack[-1].depth:
            stack.append(_Node(depth, left))
    groups = [
        SharedPrefix(tuple(sorted(order[left : right + 1])), depth)
        for left, right, depth in stack[0].chosen
    ]
    taken = {member for group in groups for member in group.members}
    return groups, [index for index in range(len(inputs)) if index not in taken]


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # slices compare in C; a loop over tokens would not
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def batches(
    lengths: Sequence[int],
    *,
    most_rows: int,
    most_tokens: int,
    call_price: int,
    uneven_price: float = 0.0,
) -> list[list[int]]:
    """Places of ``lengths`` in batches of least total cost, the longest first.

    A batch costs its rows times its longest length, and ``call_price``; where its lengths differ,
    ``uneven_price`` of its tokens more.

    Args:
        lengths: tokens of each row.
        most_rows: rows of a batch.
        most_tokens: rows times longest length of a batch; a longer row is a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    ends = _piece_ends([lengths[place] for place in order], max(1, most_rows // 4))
    starts = [0, *ends]
    cost, cut = [0.0], [0]
    for piece, end in enumerate(ends):
        shortest = lengths[order[end - 1]]
        best, best_cut = float("inf"), piece
        for first in range(piece, -1, -1):
            rows, longest = end - starts[first], lengths[order[starts[first]]]
            too_large = rows > most_rows or rows * longest > most_tokens
            if too_large and first < piece:
                break
            uneven = 1 + uneven_price * (longest != shortest)
            total = cost[first] + call_price + rows * longest * uneven
            if total < best:
                best, best_cut = total, first
        cost.append(best)
        cut.append(best_cut)
    found = []
    piece = len(ends)
    while piece:
        found.append(order[starts[cut[piece]] : starts[piece]])
        piece = cut[piece]
    return [
        part
        for batch in reversed(found)
        for part in _within(batch, lengths, most_rows, most_tokens)
    ]


def pools(
    planned: Sequence[list[SharedPrefix]], most_rows: Callable[[int], int]
) -> Iterator[list[list[SharedPrefix]]]:
    """Which batches of beginnings to hold at once, while their endings are computed.

    Args:
        planned: batches, the longest first.
        most_rows: how many beginnings can be held when the longest has so many tokens.
    """
    pool: list[list[SharedPrefix]] = []
    rows = width = 0
    for batch in planned:
        short = batch[0].length < _POOL_EVENNESS * width and rows >= _POOL_ROWS
        if pool and (short or rows + len(batch) > most_rows(width)):
            yield pool
            pool = []
        if not pool:
            rows, width = 0, batch[0].length
        pool.append(batch)
        rows += len(batch)
    if pool:
        yield pool


def _piece_ends(lengths: Sequence[int], most: int) -> list[int]:
    """Where a batch may end: where the length changes, and every ``most`` rows."""
    ends, start = [], 0
    for place in range(1, len(lengths) + 1):
        if place == len(lengths) or lengths[place] != lengths[start] or place - start == most:
            ends.append(place)
            start = place
    return ends


def _within(
    batch: list[int], lengths: Sequence[int], most_rows: int, most_tokens: int
) -> list[list[int]]:
    """A single piece may still hold too many tokens."""
    rows = max(1, min(most_rows, most_tokens // max(1, lengths[batch[0]])))
    return [batch[start : start + rows] for start in range(0, len(batch), rows)]
