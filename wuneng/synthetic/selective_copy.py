"""Selective copying: symbols strewn among filler are repeated in their order.

    input    . c . . a . b . . | ? ? ?
    label                        c a b

Every symbol stands once in each sequence, so that only their order is unknown. What grows with the
length is the filler.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wuneng.data.batch import IGNORED
from wuneng.recipe.task_settings import SelectiveCopyTask
from wuneng.synthetic.layout import orders, spread
from wuneng.synthetic.task import Examples, SizedTask

__all__ = ["SelectiveCopy"]


class SelectiveCopy(SizedTask):
    """The task that ``settings`` describe. Tokens: symbols, ``?``, the filler."""

    def __init__(self, settings: SelectiveCopyTask) -> None:
        self.symbols = settings.symbols
        self.asks, self.filler = self.symbols, self.symbols + 1
        super().__init__(
            settings.label,
            tokens=self.symbols + 2,
            answers=self.symbols,
            shortest=2 * self.symbols,
            needs="two for each symbol",
            what=f"copying {self.symbols} symbols from among filler",
        )

    def examples(self, random: np.random.Generator, rows: int, length: int) -> Examples:
        """``rows`` sequences of ``length`` tokens; DataError when the task does not fit."""
        self.check_length(length)
        made = Examples.blank(rows, length, self.filler)
        front = length - self.symbols
        order = orders(random, rows, self.symbols)
        made.write(spread(random, rows, [1] * self.symbols, front), order)
        made.inputs[:, front:] = self.asks
        made.labels[:, front:] = order
        return made

    def solve(self, row: Sequence[int]) -> list[int]:
        """Remembers the symbols, and gives them back first come, first served."""
        waiting = iter([token for token in row if token < self.symbols])
        return [next(waiting) if token == self.asks else IGNORED for token in row]
