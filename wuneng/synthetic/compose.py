"""State and recall at once: which value belongs to the product so far?

    input    s1 v0 s0 v1 | 1 0 1 1          parity; state 0 means v1, state 1 means v0
    label                  v0 v0 v1 v0

First each state of a finite group is given a value, at random and in any order; then a word of
group elements is read, and at each of them the value of the running product is asked for. Who knows
the state but not the values is at chance, and so is who knows the values but not the state. The
word grows with the length.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wuneng.data.batch import IGNORED
from wuneng.recipe.task_settings import ComposeTask
from wuneng.synthetic.groups import group_table, running_products
from wuneng.synthetic.layout import orders
from wuneng.synthetic.state_tracking import doubling_stages, scored_at
from wuneng.synthetic.task import Examples, SizedTask

__all__ = ["Compose"]


class Compose(SizedTask):
    """The task that ``settings`` describe. Tokens: states, values, elements of words; as many of
    each as the group has elements."""

    def __init__(self, settings: ComposeTask) -> None:
        self.table = group_table(settings)
        self.states = len(self.table)
        self.facts = 2 * self.states  # tokens before the word
        self.curriculum = settings.curriculum
        super().__init__(
            settings.label,
            tokens=3 * self.states,
            answers=self.states,
            shortest=self.facts + 1,
            needs="two for each state's value and one for the word",
            what=f"values of the states of {settings.group}, which has {self.states}"
            + ", with a length curriculum" * self.curriculum,
        )

    def scored_positions(self, length: int, progress: float) -> int:
        """The facts, and of the word what the curriculum has come to."""
        word = max(1, length - self.facts)
        stages = doubling_stages(word) if self.curriculum else []
        return self.facts + scored_at(stages, word, progress)

    def examples(self, random: np.random.Generator, rows: int, length: int) -> Examples:
        """``rows`` sequences of ``length`` tokens; DataError when the task does not fit."""
        self.check_length(length)
        made = Examples.blank(rows, length, 0)
        values = self.states + orders(random, rows, self.states)  # [rows, states] of each state
        order = orders(random, rows, self.states)
        made.inputs[:, 0 : self.facts : 2] = order
        made.inputs[:, 1 : self.facts : 2] = np.take_along_axis(values, order, 1)
        word = random.integers(0, self.states, (rows, length - self.facts))
        made.inputs[:, self.facts :] = 2 * self.states + word
        products = running_products(word, self.table)
        made.labels[:, self.facts :] = np.take_along_axis(values, products, 1)
        return made

    def solve(self, row: Sequence[int]) -> list[int]:
        """Reads the values, then multiplies."""
        value = dict(zip(row[0 : self.facts : 2], row[1 : self.facts : 2], strict=True))
        labels = [IGNORED] * self.facts
        state = 0
        for token in row[self.facts :]:
            state = int(self.table[state, token - 2 * self.states])
            labels.append(value[state])
        return labels
