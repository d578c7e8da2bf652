"""Bracket languages (Dyck words): which brackets close what a word has left open?

    input    ( [ ] { < > ( ) | ? ?
    label                      } )

Brackets of several types open and close, properly nested; in the end ``depth`` are open, and as
many question marks ask for their closing brackets, the innermost first. As many of each type are
left open, so that counting brackets does not help: a stack is needed. Longer sequences hold longer
words; how deep these nest is bounded by twice ``depth``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wuneng.data.batch import IGNORED
from wuneng.recipe.task_settings import BracketsTask
from wuneng.synthetic.layout import balanced
from wuneng.synthetic.task import Examples, SizedTask

__all__ = ["Brackets"]


class Brackets(SizedTask):
    """The task that ``settings`` describe. Tokens: opening, closing, ``?``, the filler."""

    def __init__(self, settings: BracketsTask) -> None:
        self.types = settings.types
        self.depth = settings.depth
        self.asks, self.filler = 2 * self.types, 2 * self.types + 1
        super().__init__(
            settings.label,
            tokens=2 * self.types + 2,
            answers=self.types,
            shortest=2 * self.depth,
            needs="two for each bracket left open",
            what=f"{self.depth} brackets of {self.types} types to be closed",
        )

    def examples(self, random: np.random.Generator, rows: int, length: int) -> Examples:
        """``rows`` sequences of ``length`` tokens; DataError when the task does not fit."""
        self.check_length(length)
        made = Examples.blank(rows, length, self.filler)
        word = length - self.depth
        filler = (word - self.depth) % 2  # a word that leaves an even number open is of even length
        opens = self._directions(random, rows, word - filler)
        tokens, left = self._typed(random, opens)
        made.inputs[:, filler:word] = tokens
        made.inputs[:, word:] = self.asks
        made.labels[:, word:] = self.types + left[:, ::-1]
        return made

    def _directions(self, random: np.random.Generator, rows: int, steps: int) -> NDArray[np.bool_]:
        """``[rows, steps]`` true where a bracket opens: walks from 0 to ``depth``."""
        height = np.zeros(rows, dtype=np.int64)
        opens = np.empty((rows, steps), dtype=np.bool_)
        up = random.random((rows, steps)) < 0.5
        for step in range(steps):
            remaining = steps - step - 1
            may_open = (height < 2 * self.depth) & (height + 1 - self.depth <= remaining)
            may_close = (height > 0) & (self.depth - height + 1 <= remaining)
            opens[:, step] = may_open & (up[:, step] | ~may_close)
            height += np.where(opens[:, step], 1, -1)
        return opens

    def _typed(
        self, random: np.random.Generator, opens: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokens ``[rows, steps]`` of the walks, and the types left open ``[rows, depth]``."""
        rows, steps = opens.shape
        heights = np.cumsum(np.where(opens, 1, -1), axis=1)
        lowest_after = np.minimum.accumulate(heights[:, ::-1], axis=1)[:, ::-1]
        stays = opens & (heights <= lowest_after)  # never closed
        types = random.integers(0, self.types, (rows, steps))
        left = balanced(random, rows, self.depth, self.types)
        types[stays] = left.ravel()  # both go row by row, from the outermost on
        stack = np.zeros((rows, 2 * self.depth + 1), dtype=np.int64)
        every = np.arange(rows)
        for step in range(steps):
            opening, level = opens[:, step], heights[:, step]
            stack[every[opening], level[opening] - 1] = types[opening, step]
            closing = ~opening
            types[closing, step] = self.types + stack[every[closing], level[closing]]
        return types, left

    def solve(self, row: Sequence[int]) -> list[int]:
        """Keeps a stack."""
        stack: list[int] = []
        labels = [IGNORED] * len(row)
        for place, token in enumerate(row):
            if token < self.types:
                stack.append(token)
            elif token < 2 * self.types:
                if stack.pop() != token - self.types:
                    raise ValueError(f"position {place}: closes another type than was opened last")
            elif token == self.asks:
                labels[place] = self.types + stack.pop()
        return labels
