"""Induction: what came after this symbol when it was here before?

    input    . . d a c b . . | . a . d . . c
    label                        c   a     b

A stretch of different symbols stands somewhere in the front part, each symbol once. The queries are
some of them again (never the last, which nothing follows). Unlike in ``recall``, a symbol is both
the answer to the one before it and the question for the one after. The filler grows with the
length.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from wuneng.data.batch import IGNORED
from wuneng.recipe.task_settings import InductionTask
from wuneng.synthetic.layout import orders, query_places, some_of, spread
from wuneng.synthetic.task import Examples, SizedTask

__all__ = ["Induction"]


class Induction(SizedTask):
    """The task that ``settings`` describe. Tokens: symbols, then the filler."""

    def __init__(self, settings: InductionTask) -> None:
        self.symbols = settings.symbols
        self.queries = settings.queries
        super().__init__(
            settings.label,
            tokens=self.symbols + 1,
            answers=self.symbols - 1,  # a symbol does not follow itself
            shortest=self.symbols + self.queries + 1,
            needs="one for each symbol and query, and one between them",
            what=f"what followed, among {self.symbols} symbols",
        )

    def examples(self, random: np.random.Generator, rows: int, length: int) -> Examples:
        """``rows`` sequences of ``length`` tokens; DataError when the task does not fit."""
        self.check_length(length)
        made = Examples.blank(rows, length, self.symbols)
        # One position stays filler, so that the last symbol is not followed by a query.
        front = (length - 1) * self.symbols // (self.symbols + self.queries)
        front = max(self.symbols, front)
        order = orders(random, rows, self.symbols)
        begin = spread(random, rows, [self.symbols], front)
        made.write(begin + np.arange(self.symbols), order)
        asked = some_of(random, rows, self.symbols - 1, self.queries)
        places = query_places(random, rows, self.queries, front + 1, length)
        made.write(places, np.take_along_axis(order, asked, 1))
        made.ask(places, np.take_along_axis(order, asked + 1, 1))
        return made

    def solve(self, row: Sequence[int]) -> list[int]:
        """Finds the stretch, and looks each later symbol up in it."""
        begin = next(place for place, token in enumerate(row) if token != self.symbols)
        end = begin + self.symbols
        follows = dict(pairwise(row[begin:end]))
        later = [follows.get(token, IGNORED) for token in row[end:]]
        return [IGNORED] * end + later
