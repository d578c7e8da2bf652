"""A figure over the seeds that an arm was trained from."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["OverSeeds", "over_seeds"]


@dataclass(frozen=True)
class OverSeeds:
    """Mean over seeds, its spread and error.

    Attributes:
        mean: None where a seed has no figure.
        spread: sample standard deviation (n - 1) of the seeds that have one; 0.0 of one seed.
        stderr: of the mean.
    """

    mean: float | None
    spread: float
    stderr: float


def over_seeds(values: Sequence[float | None]) -> OverSeeds:
    """``values``: one for each seed, None where a seed has no figure."""
    known = [value for value in values if value is not None]
    mean = statistics.fmean(known) if len(known) == len(values) else None
    spread = statistics.stdev(known) if len(known) > 1 else 0.0
    return OverSeeds(mean, spread, spread / math.sqrt(len(values)))
