"""State tracking: the running product of a sequence of group elements.

    parity   input  1 0 1 1     label  1 1 0 1

Tokens are the group's elements; the label at each position is the product of all elements so far,
so a model must carry the state along: ``parity`` and ``mod_N`` (counters), ``s3`` and ``s5``
(permutations; s5 is the smallest that no constant-depth circuit of threshold gates is thought to
solve). Every position is scored, at every length, so a figure at 8 times the training length is the
mean over all of that length.

With a curriculum only the first positions are scored early in training; evaluation is not affected.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wuneng.errors import DataError
from wuneng.recipe.task_settings import StateTrackingTask
from wuneng.synthetic.groups import group_table, running_products
from wuneng.synthetic.task import Examples

__all__ = ["StateTracking", "doubling_stages", "scored_at"]

# The default curriculum: scored positions double from 8 on, over the first half of training.
_FIRST_SCORED = 8
_DEFAULT_ENDS_AT = 0.5


class StateTracking:
    """The task that ``settings`` describe; DataError when its curriculum does not grow."""

    def __init__(self, settings: StateTrackingTask) -> None:
        self.name = settings.label
        self.group = settings.group
        self.table = group_table(settings)
        self.vocab_size = len(self.table)
        self.chance = 1.0 / self.vocab_size
        self.default_curriculum = settings.curriculum is True
        stages = settings.curriculum if isinstance(settings.curriculum, list) else []
        self.stages = [(stage.until, stage.scored) for stage in stages]
        if self.stages != sorted(set(self.stages)) or len(dict(self.stages)) != len(self.stages):
            raise DataError(
                f"task {self.name!r}: the stages of curriculum must end one after the other, "
                f"got until = {[until for until, _ in self.stages]}"
            )

    def describe(self) -> str:
        """One line for people."""
        staged = ", with a length curriculum" if self.default_curriculum or self.stages else ""
        return (
            f"{self.name}: state tracking in a group of {self.vocab_size} elements "
            f"(chance {self.chance:.3f}){staged}"
        )

    def scored_positions(self, length: int, progress: float) -> int:
        """``scored`` of the stage that ``progress`` lies in; ``length`` after the last."""
        return scored_at(self._stages(length), length, progress)

    def check_length(self, length: int) -> None:
        """Words of a group have any length."""

    def examples(self, random: np.random.Generator, rows: int, length: int) -> Examples:
        """``rows`` uniformly random words of ``length`` elements and their running products."""
        elements = random.integers(0, self.vocab_size, (rows, length))
        return Examples(elements, running_products(elements, self.table))

    def solve(self, row: Sequence[int]) -> list[int]:
        """Multiplies one element after the other to the product before it."""
        products = [row[0]]
        for element in row[1:]:
            products.append(int(self.table[products[-1], element]))
        return products

    def _stages(self, length: int) -> list[tuple[float, int]]:
        return doubling_stages(length) if self.default_curriculum else self.stages


def doubling_stages(length: int) -> list[tuple[float, int]]:
    """(until, scored) of the default curriculum: scored positions double from 8 on, over the first
    half of training."""
    scored = []
    positions = _FIRST_SCORED
    while positions < length:
        scored.append(positions)
        positions *= 2
    share = _DEFAULT_ENDS_AT / max(1, len(scored))
    return [(share * (i + 1), positions) for i, positions in enumerate(scored)]


def scored_at(stages: Sequence[tuple[float, int]], length: int, progress: float) -> int:
    """``scored`` of the stage that ``progress`` lies in; ``length`` after the last."""
    return next((min(scored, length) for until, scored in stages if progress < until), length)
