"""Tuning: every arm is given the same values, on seeds and held-out text that decide nothing later.

A best value at the edge of the grid may not be the best there is, so the grid is made longer by the
step that it ends with, for every arm alike: the budget stays equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from wuneng.recipe import Point, points_of
from wuneng.study.outcomes import arm_entries, best_first, edge_paths, figure_of
from wuneng.study.planning import StudyPlan
from wuneng.study.rungs import Rung
from wuneng.study.stage import Stage

__all__ = ["MOST_EXTENSIONS", "Tuned", "extended", "tune"]

#: How often a grid is made longer.
MOST_EXTENSIONS = 2


@dataclass
class Tuned:
    """What the arms came to at one rung."""

    grid: dict[str, list[Any]]
    """The values that were tried, by the path of the field."""
    tried: list[dict[str, Any]] = field(default_factory=list)
    """``values``, and ``figures`` by arm; None where an arm diverged."""
    best: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Values by arm; an arm that diverged everywhere is missing."""
    at_edge: dict[str, list[str]] = field(default_factory=dict)
    """Fields of an arm's best values that still lie at the edge of the grid."""


def tune(plan: StudyPlan, stage: Stage) -> dict[str, Tuned]:
    """Tune every arm at every rung; by the rung's name.

    Raises:
        UnitsFailed, Interrupted, InputError, DiskError: as ``Stage.train``.
    """
    grids = {
        rung.name: {path: list(values) for path, values in plan.study.tune.items()}
        for rung in plan.rungs
    }
    for round_ in range(MOST_EXTENSIONS + 1):
        tuned = _tried(plan, stage, grids)
        longer = {name: extended(found) for name, found in tuned.items()}
        if longer == grids or round_ == MOST_EXTENSIONS:
            return tuned
        for name, grid in longer.items():
            if grid != grids[name]:
                stage.note(f"{name}: a best value lies at the edge of what was tried: more values")
        grids = longer
    raise AssertionError("the last round returns")


def extended(found: Tuned) -> dict[str, list[Any]]:
    """The grid, longer wherever an arm's best value lies at an end of it."""
    grid = {path: list(values) for path, values in found.grid.items()}
    for values in found.best.values():
        for path, (end, neighbour) in edge_paths(found.grid, values).items():
            further = _beyond(end, neighbour)
            if further is not None and further not in grid[path]:
                grid[path].append(further)
    return grid


def _beyond(end: float, neighbour: float) -> float | None:
    """The next value of a grid that ends so: as many times as far, or, of counts and values about
    zero, as much further. None where that is no value any more."""
    if end > 0 and neighbour > 0:
        ratio = end / neighbour
        further = end * ratio
        if isinstance(end, int) and isinstance(neighbour, int):
            return round(further) if round(further) not in (end, 0) else None
        return float(f"{further:.12g}")
    return None


def _tried(
    plan: StudyPlan, stage: Stage, grids: Mapping[str, dict[str, list[Any]]]
) -> dict[str, Tuned]:
    points = {rung.name: points_of(grids[rung.name]) for rung in plan.rungs}
    with ExitStack() as stack:
        opened = {
            (rung.name, point.name): stack.enter_context(_open(plan, stage, rung, point))
            for rung in plan.rungs
            for point in points[rung.name]
        }
        stage.train(list(opened.values()))
        entries = {key: arm_entries(run) for key, run in opened.items()}
    return {
        rung.name: _chosen(plan, grids[rung.name], points[rung.name], rung, entries)
        for rung in plan.rungs
    }


def _open(plan: StudyPlan, stage: Stage, rung: Rung, point: Point) -> Any:
    values = {"seed": _one_or_more(plan.tuning_seeds), **point.values}
    return stage.open(rung, f"tune/{rung.name}/{point.name}", values, part="tuning")


def _one_or_more(seeds: Sequence[int]) -> Any:
    return seeds[0] if len(seeds) == 1 else list(seeds)


def _chosen(
    plan: StudyPlan,
    grid: dict[str, list[Any]],
    points: Sequence[Point],
    rung: Rung,
    entries: Mapping[tuple[str, str], Mapping[str, Any]],
) -> Tuned:
    found = Tuned(grid)
    primary, higher = plan.study.primary, plan.higher_is_better
    tried = [entries[rung.name, point.name] for point in points]
    for point, arms in zip(points, tried, strict=True):
        figures = {
            arm: None if entry is None else entry["quality"].get(primary)
            for arm, entry in arms.items()
        }
        found.tried.append({"values": dict(point.values), "figures": figures})
    for arm in plan.written.recipe.arms:
        values = [figure_of(arms[arm], [primary]) for arms in tried]
        first = best_first(values, higher=higher)[0]
        if tried[first][arm] is None:
            continue
        found.best[arm] = dict(points[first].values)
        found.at_edge[arm] = list(edge_paths(grid, found.best[arm]))
    return found
