"""Addition with carries: the digits of a sum, the lowest first.

    input    : 7 4 + 5 9          47 + 95 = 142
    label            2 4

The first number's digits stand before the ``+``; at each digit of the second the sum's digit is
asked for, so that the first number's must be looked up and the carry kept. ``interleaved`` puts the
digits of both side by side (``: 7 5 4 9``): then the carry alone is left. The carry out of the
highest digit is not asked for, which leaves every digit of a sum equally likely.

Longer sequences hold more sums; with ``digits: null`` one sum fills the sequence and grows with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wuneng.data.batch import IGNORED
from wuneng.recipe.task_settings import AdditionTask
from wuneng.synthetic.task import Examples, SizedTask

__all__ = ["Addition"]


class Addition(SizedTask):
    """The task that ``settings`` describe. Tokens: digits, ``:``, ``+``, the filler."""

    def __init__(self, settings: AdditionTask) -> None:
        self.base = settings.base
        self.digits = settings.digits
        self.interleaved = settings.interleaved
        self.begins, self.plus, self.filler = range(self.base, self.base + 3)
        self._marks = 1 if self.interleaved else 2
        how = f"of {self.digits} digits" if self.digits else "as long as the sequence"
        super().__init__(
            settings.label,
            tokens=self.base + 3,
            answers=self.base,
            shortest=2 * (self.digits or 1) + self._marks,
            needs=f"one for each digit of two numbers and {self._marks} more",
            what=f"sums {how} in base {self.base}{', interleaved' * self.interleaved}",
        )

    def examples(self, random: np.random.Generator, rows: int, length: int) -> Examples:
        """``rows`` sequences of ``length`` tokens; DataError when the task does not fit."""
        self.check_length(length)
        made = Examples.blank(rows, length, self.filler)
        digits = self.digits or (length - self._marks) // 2
        size = 2 * digits + self._marks
        count = length // size
        begin = length - count * size  # filler before the first sum
        a, b = random.integers(0, self.base, (2, rows * count, digits))
        words = np.full((rows * count, size), self.begins)
        labels = np.full((rows * count, size), IGNORED)
        if self.interleaved:
            first, second = slice(1, None, 2), slice(2, None, 2)
        else:
            first, second = slice(1, digits + 1), slice(digits + 2, None)
            words[:, digits + 1] = self.plus
        words[:, first], words[:, second] = a, b
        carry = np.zeros(rows * count, dtype=np.int64)
        sums = np.empty_like(a)
        for place in range(digits):
            carry, sums[:, place] = np.divmod(a[:, place] + b[:, place] + carry, self.base)
        labels[:, second] = sums
        made.inputs[:, begin:] = words.reshape(rows, -1)
        made.labels[:, begin:] = labels.reshape(rows, -1)
        return made

    def solve(self, row: Sequence[int]) -> list[int]:
        """Adds as one does on paper, sum by sum."""
        begins = [place for place, token in enumerate(row) if token == self.begins]
        labels = [IGNORED] * len(row)
        for begin, end in zip(begins, [*begins[1:], len(row)], strict=True):
            word = row[begin + 1 : end]
            if self.interleaved:
                pairs = [
                    (begin + 2 + 2 * i, *word[2 * i : 2 * i + 2]) for i in range(len(word) // 2)
                ]
            else:
                cut = word.index(self.plus)
                pairs = [(begin + 2 + cut + i, word[i], word[cut + 1 + i]) for i in range(cut)]
            carry = 0
            for place, one, other in pairs:
                carry, labels[place] = divmod(one + other + carry, self.base)
        return labels
