"""Multi-hop chains: tables of facts in any order, and names to be followed through all of them.

    input    b1 c0 a0 b1 . a1 b0 . b0 c1 | . a0 . a1        two hops: a -> b -> c
    label                                    c0   c1

Every hop has a set of names of its own, and its table gives each name another one of the next set,
at random. The facts of all tables are strewn over the front part of the sequence, so that the order
of lookups is not the order of facts. What grows with the length is the filler.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wuneng.data.batch import IGNORED
from wuneng.recipe.task_settings import ChainTask
from wuneng.synthetic.layout import fact_places, front_part, orders, query_places
from wuneng.synthetic.task import Examples, SizedTask

__all__ = ["Chain"]


class Chain(SizedTask):
    """The task that ``settings`` describe. Tokens: the names of each set, then the filler."""

    def __init__(self, settings: ChainTask) -> None:
        self.hops = settings.hops
        self.names = settings.names
        self.queries = settings.queries or settings.names
        self.facts = self.hops * self.names
        self.filler = (self.hops + 1) * self.names
        super().__init__(
            settings.label,
            tokens=self.filler + 1,
            answers=self.names,
            shortest=2 * self.facts + self.queries,
            needs="two for each fact, one for each query",
            what=f"{self.hops} hops through tables of {self.names} names",
        )

    def examples(self, random: np.random.Generator, rows: int, length: int) -> Examples:
        """``rows`` sequences of ``length`` tokens; DataError when the task does not fit."""
        self.check_length(length)
        made = Examples.blank(rows, length, self.filler)
        tables = np.stack([orders(random, rows, self.names) for _ in range(self.hops)], axis=1)
        sets = self.names * np.arange(1, self.hops + 1)[:, None]
        follows = (tables + sets).reshape(rows, self.facts)  # [rows, facts] token after token i
        front = front_part(self.facts, self.queries, length)
        places = fact_places(random, rows, self.facts, front)
        order = orders(random, rows, self.facts)
        made.write(places, order)
        made.write(places + 1, np.take_along_axis(follows, order, 1))

        rounds = -(-self.queries // self.names)
        asked = np.concatenate([orders(random, rows, self.names) for _ in range(rounds)], axis=1)
        asked = asked[:, : self.queries]
        answers = asked
        for _ in range(self.hops):
            answers = np.take_along_axis(follows, answers, 1)
        places = query_places(random, rows, self.queries, front, length)
        made.write(places, asked)
        made.ask(places, answers)
        return made

    def solve(self, row: Sequence[int]) -> list[int]:
        """Reads facts in pairs, then follows each name that stands alone."""
        follows: dict[int, int] = {}
        labels = [IGNORED] * len(row)
        place = 0
        while place < len(row):
            token, after = row[place], [*row, self.filler][place + 1]
            if token // self.names < self.hops and after // self.names == token // self.names + 1:
                follows[token] = after
                place += 1
            elif token != self.filler:
                labels[place] = self._followed(token, follows)
            place += 1
        return labels

    def _followed(self, token: int, follows: dict[int, int]) -> int:
        for _ in range(self.hops):
            token = follows[token]
        return token
