"""Which steps of a run are meant: ``FIRST-LAST``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from wuneng.errors import InputError

__all__ = ["StepRange", "step_range"]

_MOST = 100


@dataclass(frozen=True)
class StepRange:
    """Steps ``first`` to ``last``, both included; the first of a run is 1."""

    first: int
    last: int

    def __contains__(self, step: int) -> bool:
        return self.first <= step <= self.last

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


def step_range(text: str, total_steps: int, option: str) -> StepRange:
    """What ``text`` says of a run of ``total_steps``.

    Raises:
        InputError: it is no range, names ``option``; or the run has no such steps; or it is so long
            that a record of it would fill the memory.
    """
    match = re.fullmatch(r"\s*([0-9]{1,18})(?:\s*-\s*([0-9]{1,18}))?\s*", text)
    if match is None:
        raise InputError(f"{option}: expected FIRST-LAST, two steps as in 10-12, got {text!r}")
    found = StepRange(int(match[1]), int(match[2] or match[1]))
    if not 1 <= found.first <= found.last <= total_steps:
        raise InputError(
            f"{option}: expected steps from 1 to {total_steps:,} (training.steps), the first not "
            f"after the last, got {text!r}"
        )
    if found.last - found.first >= _MOST:
        raise InputError(
            f"{option}: expected at most {_MOST} steps, whose trace fits into memory, got {text!r}"
        )
    return found
