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

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from wuneng.data.batch import IGNORED
from wuneng.errors import DataError
from wuneng.recipe.task_settings import RecallTask
from wuneng.synthetic.layout import fact_places, front_part, query_places, some_of
from wuneng.synthetic.task import Examples, SizedTask, random_stream

__all__ = ["Recall"]

_MOST_COMPARED = 1 << 20
"""Pairs of writes that are looked at for what a guess gets right."""


class Recall(SizedTask):
    """The task that ``settings`` describe. Tokens: keys, then values, then the filler.

    Raises DataError when there are more pairs than keys, or nothing to rewrite a value to.
    """

    def __init__(self, settings: RecallTask) -> None:
        self.pairs = settings.pairs
        self.queries = settings.queries or settings.pairs
        self.rewrites = settings.rewrites
        self.keys = settings.keys
        self.values = settings.values
        self.distinct_values = settings.distinct_values
        rewrites = f", {self.rewrites} rewrites" if self.rewrites else ""
        super().__init__(
            settings.name,
            tokens=self.keys + self.values + 1,
            answers=self.values,
            shortest=2 * (self.pairs + self.rewrites) + self.queries,
            needs="two for each pair and rewrite, one for each query",
            what=f"recall of {self.pairs} pairs{rewrites}, {self.queries} queries, "
            f"{self.values} values",
        )
        if self.pairs > self.keys:
            raise DataError(
                f"task {self.name!r}: {self.pairs} pairs need as many different keys, "
                f"but keys is {self.keys}"
            )
        if self.rewrites and self.values < 2:
            raise DataError(
                f"task {self.name!r}: a rewritten key needs a second value, but values is 1"
            )

    @cached_property
    def informed_chance(self) -> float:
        """Accuracy of the best guess of one who sees which values a row has, and not whose they
        are: the value that is written most often. More than ``chance`` unless all occur in every
        row; measured over rows of its own, and exact where values are distinct and never rewritten.
        """
        writes = self.pairs + self.rewrites
        rows = max(16, min(20_000, _MOST_COMPARED // writes**2))
        _, values, latest = self._writes(random_stream("informed chance", self.name), rows)
        often = (values[:, :, None] == values[:, None, :]).sum(2)
        often = often + values / self.values  # ties by value: when it was written is not seen
        guess = np.take_along_axis(values, often.argmax(1)[:, None], 1)
        return float((latest == guess).mean())

    def describe(self) -> str:
        """One line for people."""
        occurs = f"; {self.informed_chance:.2f} by the value that occurs most)"
        return super().describe().removesuffix(")") + occurs

    def examples(self, random: np.random.Generator, rows: int, length: int) -> Examples:
        """``rows`` sequences of ``length`` tokens; DataError when the task does not fit."""
        self.check_length(length)
        made = Examples.blank(rows, length, self.keys + self.values)
        writes = self.pairs + self.rewrites
        keys = some_of(random, rows, self.keys, self.pairs)  # [rows, pairs] different in a row
        order, values, latest = self._writes(random, rows)
        front = front_part(writes, self.queries, length)
        places = fact_places(random, rows, writes, front)
        made.write(places, np.take_along_axis(keys, order, 1))
        made.write(places + 1, self.keys + values)

        asked = self._asked(random, rows)
        places = query_places(random, rows, self.queries, front, length)
        made.write(places, np.take_along_axis(keys, asked, 1))
        made.ask(places, self.keys + np.take_along_axis(latest, asked, 1))
        return made

    def solve(self, row: Sequence[int]) -> list[int]:
        """Keeps each key's latest value, and answers keys that no value follows."""
        known: dict[int, int] = {}
        labels = [IGNORED] * len(row)
        for place, (token, after) in enumerate(zip(row, [*row[1:], -1], strict=True)):
            if token < self.keys:
                if self.keys <= after < self.keys + self.values:
                    known[token] = after
                else:
                    labels[place] = known[token]
        return labels

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
        order = np.take_along_axis(which, some_of(random, rows, writes, writes), 1)
        if self.distinct_values:
            first_values = some_of(random, rows, self.values, self.pairs)
        else:
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
        asked = [some_of(random, rows, self.pairs, self.pairs) for _ in range(rounds)]
        return np.concatenate(asked, axis=1)[:, : self.queries]
