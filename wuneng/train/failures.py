"""Units of a run that failed: the others are trained all the same, these are named at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from wuneng.errors import RunError

__all__ = ["Failure", "UnitsFailed"]


@dataclass(frozen=True)
class Failure:
    """An arm from a seed that was not trained to its end."""

    unit: str
    """As ``mha (seed 1)``."""
    reason: str
    diverged: bool = False
    """Its loss was not finite any more, as too high a learning rate has it."""


class UnitsFailed(RunError):
    """Some arms failed from some seeds; everything else is finished."""

    def __init__(self, failures: Sequence[Failure], units: int, run: Path) -> None:
        told = "".join(f"\n  {failure.unit}: {failure.reason}" for failure in failures)
        rest = "the others are finished" if len(failures) < units else "none is finished"
        super().__init__(
            f"{len(failures)} of {units} failed, {rest}:{told}\n"
            "What is finished is kept: run the same command again to try these once more, or: "
            f"wuneng train {quote(str(run / 'recipe.yaml'))} --resume {quote(str(run))}"
        )
        self.failures = tuple(failures)
