"""Boxes with moves: objects change places two by two, and after every move one box is opened.

    input    b2 o0 b0 o1 b1 o2 | = b0 b2 ? b1 | = b1 b2 ? b2 | ...
    label                               o2              o2

``= b0 b2`` swaps what the boxes b0 and b2 hold; ``? b1`` asks what b1 holds now. First every box is
filled, in random order. What is asked cannot be read off any one fact: the moves since must be
followed, and with five boxes or more that is as hard as permutations get (``s5``).

By default moves fill the sequence, so that longer ones hold more of them; with ``moves`` set their
number stays and the filler between them grows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wuneng.data.batch import IGNORED
from wuneng.recipe.task_settings import BoxesTask
from wuneng.synthetic.layout import orders, some_of, spread
from wuneng.synthetic.task import Examples, SizedTask

__all__ = ["Boxes"]

_MOVE = 5  # tokens of a move and the question after it


class Boxes(SizedTask):
    """The task that ``settings`` describe. Tokens: boxes, objects, ``=``, ``?``, the filler."""

    def __init__(self, settings: BoxesTask) -> None:
        self.boxes = settings.boxes
        self.moves = settings.moves
        self.swap, self.asks, self.filler = range(2 * self.boxes, 2 * self.boxes + 3)
        super().__init__(
            settings.label,
            tokens=2 * self.boxes + 3,
            answers=self.boxes,
            shortest=2 * self.boxes + _MOVE * (self.moves or 1),
            needs=f"two for each box, {_MOVE} for each move with its question",
            what=f"{self.moves or 'as many as fit'} moves among {self.boxes} boxes",
        )

    def examples(self, random: np.random.Generator, rows: int, length: int) -> Examples:
        """``rows`` sequences of ``length`` tokens; DataError when the task does not fit."""
        self.check_length(length)
        made = Examples.blank(rows, length, self.filler)
        moves = self.moves or (length - 2 * self.boxes) // _MOVE
        places = spread(random, rows, [2] * self.boxes + [_MOVE] * moves, length)
        filled, moved = places[:, : self.boxes], places[:, self.boxes :]
        holds = orders(random, rows, self.boxes)  # [rows, boxes] the object in each box
        order = orders(random, rows, self.boxes)
        made.write(filled, order)
        made.write(filled + 1, self.boxes + np.take_along_axis(holds, order, 1))
        for move in range(moves):
            place = moved[:, move : move + 1]
            pair = some_of(random, rows, self.boxes, 2)
            swapped = np.take_along_axis(holds, pair[:, ::-1], 1)
            np.put_along_axis(holds, pair, swapped, 1)
            opened = random.integers(0, self.boxes, (rows, 1))
            symbols = np.full((rows, 1), self.swap), pair, np.full((rows, 1), self.asks), opened
            made.write(place + np.arange(_MOVE), np.concatenate(symbols, axis=1))
            made.ask(place + _MOVE - 1, self.boxes + np.take_along_axis(holds, opened, 1))
        return made

    def solve(self, row: Sequence[int]) -> list[int]:
        """Carries every move out."""
        holds: dict[int, int] = {}
        labels = [IGNORED] * len(row)
        for place, token in enumerate(row):
            if token == self.swap:
                one, other = row[place + 1 : place + 3]
                holds[one], holds[other] = holds[other], holds[one]
            elif token == self.asks:
                labels[place + 1] = holds[row[place + 1]]
            elif self.boxes <= token < 2 * self.boxes:
                holds[row[place - 1]] = token
        return labels
