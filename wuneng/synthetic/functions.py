"""In-context functions: examples of an unknown function, and a number that it was not shown for.

    input    | 3 5 1 3 6          f(x) = x + 2
    label              8

Numbers are counted modulo N. A new function is drawn after every ``|``; its examples are pairs x,
f(x) with different x, and the last x is a new one, so that no example can be looked up. Longer
sequences hold more functions, and each must be forgotten for the next.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wuneng.data.batch import IGNORED
from wuneng.recipe.task_settings import FunctionsTask
from wuneng.synthetic.layout import some_of
from wuneng.synthetic.task import Examples, SizedTask

__all__ = ["Functions"]


class Functions(SizedTask):
    """The task that ``settings`` describe. Tokens: numbers, ``|``, the filler."""

    def __init__(self, settings: FunctionsTask) -> None:
        self.family = settings.family
        self.modulus = settings.modulus
        self.shown = settings.examples
        self.begins, self.filler = self.modulus, self.modulus + 1
        super().__init__(
            settings.label,
            tokens=self.modulus + 2,
            answers=self.modulus,
            shortest=2 * self.shown + 2,
            needs="two for each example, two more for the question",
            what=f"{self.family} functions modulo {self.modulus} from {self.shown} examples",
        )

    def examples(self, random: np.random.Generator, rows: int, length: int) -> Examples:
        """``rows`` sequences of ``length`` tokens; DataError when the task does not fit."""
        self.check_length(length)
        made = Examples.blank(rows, length, self.filler)
        count = length // self.shortest
        begin = length - count * self.shortest  # filler before the first function
        x = some_of(random, rows * count, self.modulus, self.shown + 1)
        offset = random.integers(0, self.modulus, (rows * count, 1))
        slope = np.ones_like(offset)
        if self.family == "affine":  # never 0: then the answer would be seen in every example
            slope = random.integers(1, self.modulus, (rows * count, 1))
        y = (slope * x + offset) % self.modulus
        pairs = np.stack([x, y], axis=2).reshape(rows * count, -1)  # x, f(x), x, f(x), ...
        start = np.full((rows * count, 1), self.begins)
        words = np.concatenate([start, pairs[:, :-1]], axis=1)  # but for the last answer
        made.inputs[:, begin:] = words.reshape(rows, -1)
        made.labels[:, begin + self.shortest - 1 :: self.shortest] = y[:, -1].reshape(rows, count)
        return made

    def solve(self, row: Sequence[int]) -> list[int]:
        """Tries every function of the family on the examples."""
        labels = [IGNORED] * len(row)
        for place, token in enumerate(row):
            if token == self.begins:
                word = row[place + 1 : place + self.shortest]
                labels[place + self.shortest - 1] = self._answer(word[:-1], word[-1])
        return labels

    def _answer(self, shown: Sequence[int], asked: int) -> int:
        slopes = [1] if self.family == "shift" else range(self.modulus)
        for slope in slopes:
            offset = (shown[1] - slope * shown[0]) % self.modulus
            pairs = zip(shown[::2], shown[1::2], strict=True)
            if all((slope * x + offset) % self.modulus == y for x, y in pairs):
                return (slope * asked + offset) % self.modulus
        raise ValueError(f"no function of the family fits the examples {list(shown)}")
