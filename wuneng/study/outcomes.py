"""What the arms of a run came to, and the figure by which values are chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from wuneng.train.opening import OpenRun
from wuneng.train.results import combine, finished_record

__all__ = ["arm_entries", "best_first", "deciding_figures", "edge_paths", "figure_of"]


def arm_entries(run: OpenRun) -> dict[str, dict[str, Any] | None]:
    """Every arm as results.json has it; None where it was not trained to its end from a seed."""
    found: dict[str, dict[str, Any] | None] = {}
    for arm in run.outline.arms:
        places = (run.outline.place(run.directory, arm, seed) for seed in run.outline.seeds)
        records = [finished_record(place, check=run.session.check) for place in places]
        whole = [record for record in records if record is not None]
        found[arm] = combine(whole) if len(whole) == len(records) else None
    return found


def deciding_figures(quality: Mapping[str, Any]) -> list[str]:
    """Names of the figures that decide where none is named: bits per byte, or the losses of the
    tasks. Lower is better in either."""
    for wanted in ("bits_per_byte", "loss"):
        names = [name for name in quality if name.rpartition("/")[2] == wanted]
        if names:
            return names
    return []


def figure_of(entry: Mapping[str, Any] | None, names: Sequence[str]) -> float:
    """The mean of the figures ``names``; infinite where the arm failed or has none that is finite,
    so that it is never the best."""
    if entry is None or not names:
        return math.inf
    values = [entry["quality"].get(name) for name in names]
    if any(value is None or not math.isfinite(value) for value in values):
        return math.inf
    return sum(values) / len(values)


def best_first(values: Sequence[float], *, higher: bool = False) -> list[int]:
    """Indices from the best to the worst; equal ones in their order. Infinite is the worst."""

    def key(index: int) -> tuple[bool, float]:
        value = values[index]
        return (not math.isfinite(value), -value if higher else value)

    return sorted(range(len(values)), key=key)


def edge_paths(
    grid: Mapping[str, Sequence[Any]], chosen: Mapping[str, Any]
) -> dict[str, tuple[float, float]]:
    """Fields whose chosen value lies at an end of a grid of numbers: the end, and its neighbour."""
    found = {}
    for path, values in grid.items():
        numbers = isinstance(values, Sequence) and all(
            isinstance(value, int | float) and not isinstance(value, bool) for value in values
        )
        if not numbers or len(values) < 2:
            continue
        ordered = sorted(values)
        if chosen[path] == ordered[0]:
            found[path] = (ordered[0], ordered[1])
        elif chosen[path] == ordered[-1]:
            found[path] = (ordered[-1], ordered[-2])
    return found
