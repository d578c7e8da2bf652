"""A needle in a haystack: which value stood behind this key?

    input    v3 v0 v2 K0 v1 v3 v0 v2 ... v1 | K0
    label                                     v1

The haystack is made of the values themselves, each as often, so that a value's being there says
nothing: the key must be found, however far back it lies (its depth is uniform). Several needles
have keys of their own, asked for in random order. The haystack grows with the length.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wuneng.data.batch import IGNORED
from wuneng.recipe.task_settings import NeedleTask
from wuneng.synthetic.layout import balanced, orders, spread
from wuneng.synthetic.task import Examples, SizedTask

__all__ = ["Needle"]


class Needle(SizedTask):
    """The task that ``settings`` describe. Tokens: keys, then values.

    A haystack of fewer values than there are would leave some out, so there is room for all.
    """

    def __init__(self, settings: NeedleTask) -> None:
        self.needles = settings.needles
        self.values = settings.values
        super().__init__(
            settings.label,
            tokens=self.needles + self.values,
            answers=self.values,
            shortest=2 * self.needles + max(self.values, self.needles),
            needs="two for each needle, one for each value of the haystack",
            what=f"{self.needles} needle{'s' * (self.needles > 1)} among {self.values} values",
        )

    def examples(self, random: np.random.Generator, rows: int, length: int) -> Examples:
        """``rows`` sequences of ``length`` tokens; DataError when the task does not fit."""
        self.check_length(length)
        made = Examples.blank(rows, length, self.needles)
        front = length - self.needles
        places = spread(random, rows, [2] * self.needles, front)
        hidden = np.zeros((rows, front), dtype=np.bool_)
        np.put_along_axis(hidden, places, True, 1)
        hay = balanced(random, rows, front - self.needles, self.values)
        made.inputs[:, :front][~hidden] = self.needles + hay.ravel()
        keys = orders(random, rows, self.needles)
        made.write(places, keys)
        order = orders(random, rows, self.needles)
        behind = np.take_along_axis(made.inputs, places + 1, 1)
        made.inputs[:, front:] = np.take_along_axis(keys, order, 1)
        made.labels[:, front:] = np.take_along_axis(behind, order, 1)
        return made

    def solve(self, row: Sequence[int]) -> list[int]:
        """Notes what stands behind each key in the haystack."""
        front = len(row) - self.needles
        behind = {row[i]: row[i + 1] for i in range(front - 1) if row[i] < self.needles}
        return [IGNORED] * front + [behind[key] for key in row[front:]]
