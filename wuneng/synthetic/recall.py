"""Multi-query associative recall: pairs of a key and a value, then keys to be answered.

    input    . k1 v1 . . k2 v2 k1 v3 . | . k2 . . k1 .
    label                                  v2     v3

Keys, values and the filler ``.`` have tokens of their own. A key that is written again (a rewrite)
takes a new value, and the latest counts. Only the queries are scored: the label at a queried key is
its value.

A sequence has exactly the length asked for, and the number of pairs and queries does not grow with
it: what is longer is the filler. Pairs are scattered over the front part of the sequence and
queries over the rest; the parts are in proportion to the tokens that they need.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wuneng.data.batch import IGNORED
from wuneng.errors import DataError
from wuneng.recipe.data import RecallTask
from wuneng.synthetic.task import Examples

__all__ = ["Recall"]


class Recall:
    """The task that ``settings`` describe. Tokens: keys, then values, then the filler.

    Raises DataError when there are more pairs than keys, or nothing to rewrite a value to.
    """

    def __init__(self, settings: RecallTask) -> None:
        self.name = settings.name
        self.pairs = settings.pairs
        self.queries = settings.queries or settings.pairs
        self.rewrites = settings.rewrites
        self.keys = settings.keys
        self.values = settings.values
        self.vocab_size = self.keys + self.values + 1
        self.chance = 1.0 / self.values
        if self.pairs > self.keys:
            raise DataError(
                f"task {self.name!r}: {self.pairs} pairs need as many different keys, "
                f"but keys is {self.keys}"
            )
        if self.rewrites and self.values < 2:
            raise DataError(
                f"task {self.name!r}: a rewritten key needs a second value, but values is 1"
            )

    @property
    def shortest(self) -> int:
        """Tokens of a sequence without filler."""
        return 2 * (self.pairs + self.rewrites) + self.queries

    def describe(self) -> str:
        """One line for people."""
        rewrites = f", {self.rewrites} rewrites" if self.rewrites else ""
        return (
            f"{self.name}: recall of {self.pairs} pairs{rewrites}, {self.queries} queries, "
            f"{self.values} values (chance {self.chance:.3f})"
        )

    def scored_positions(self, length: int, progress: float) -> int:
        """All of them, from the start of training."""
        return length

    def check_length(self, length: int) -> None:
        """Raise DataError where pairs and queries need more than ``length`` tokens."""
        if length < self.shortest:
            raise DataError(
                f"task {self.name!r} needs at least {self.shortest} tokens (two for each pair and "
                f"rewrite, one for each query), but the sequence length is {length}"
            )

    def examples(self, random: np.random.Generator, rows: int, length: int) -> Examples:
        """``rows`` sequences of ``length`` tokens; DataError when the task does not fit."""
        self.check_length(length)
        writes = self.pairs + self.rewrites
        front = max(2 * writes, 2 * writes * length // self.shortest)
        inputs = np.full((rows, length), self.keys + self.values, dtype=np.int64)
        labels = np.full((rows, length), IGNORED, dtype=np.int64)

        keys = _some_of(random, rows, self.keys, self.pairs)  # [rows, pairs] different in a row
        order, values, latest = self._writes(random, rows)
        places = 2 * np.sort(_some_of(random, rows, front // 2, writes), axis=1)
        np.put_along_axis(inputs, places, np.take_along_axis(keys, order, 1), 1)
        np.put_along_axis(inputs, places + 1, self.keys + values, 1)

        asked = self._asked(random, rows)
        places = front + np.sort(_some_of(random, rows, length - front, self.queries), axis=1)
        np.put_along_axis(inputs, places, np.take_along_axis(keys, asked, 1), 1)
        answers = self.keys + np.take_along_axis(latest, asked, 1)
        np.put_along_axis(labels, places, answers, 1)
        return Examples(inputs, labels)

    def _writes(
        self, random: np.random.Generator, rows: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Which pair each write is of, the value that it writes, and each pair's value at the end.

        ``[rows, writes]``, ``[rows, writes]``, ``[rows, pairs]``. Every write but the first of a
        pair moves its value by a step that is not 0, so the new value differs from the old.
        """
        writes = self.pairs + self.rewrites
        again = random.integers(0, self.pairs, (rows, self.rewrites))
        once = np.broadcast_to(np.arange(self.pairs), (rows, self.pairs))
        which = np.concatenate([once, again], axis=1)
        order = np.take_along_axis(which, _some_of(random, rows, writes, writes), 1)
        first_values = random.integers(0, self.values, (rows, self.pairs))
        if not self.rewrites:
            return order, np.take_along_axis(first_values, order, 1), first_values
        steps = random.integers(1, self.values, (rows, writes))
        of_pair = order[:, :, None] == np.arange(self.pairs)  # [rows, writes, pairs]
        moved = np.cumsum(steps[:, :, None] * of_pair, axis=1)
        running = (first_values[:, None] + moved) % self.values
        values = np.take_along_axis(running, order[:, :, None], 2)[:, :, 0]
        return order, values, running[:, -1]

    def _asked(self, random: np.random.Generator, rows: int) -> NDArray[np.int64]:
        """``[rows, queries]`` pairs in random order; none is asked again before all have been."""
        rounds = -(-self.queries // self.pairs)
        asked = [_some_of(random, rows, self.pairs, self.pairs) for _ in range(rounds)]
        return np.concatenate(asked, axis=1)[:, : self.queries]


def _some_of(
    random: np.random.Generator, rows: int, population: int, count: int
) -> NDArray[np.int64]:
    """``[rows, count]``: different numbers below ``population``, in random order."""
    return np.argsort(random.random((rows, population)), axis=1)[:, :count]
