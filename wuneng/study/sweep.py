"""A sweep: the recipe trained at every combination of the values that it names.

runs/<name>/recipe.yaml                 as written
            results.json                every point and arm, and the best point of each arm
            learning_rate-0.001/        a run like any other, of the recipe at that point
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wuneng.device import require_one_process
from wuneng.errors import InputError
from wuneng.recipe import Point, WrittenRecipe, points_of
from wuneng.records import RUNS_ROOT
from wuneng.study.outcomes import (
    arm_entries,
    best_first,
    deciding_figures,
    edge_paths,
    figure_of,
)
from wuneng.study.parent import Parent, open_parent
from wuneng.study.sweep_table import sweep_sentence, sweep_table
from wuneng.train.display import Display, make_display
from wuneng.train.failures import Failure, UnitsFailed
from wuneng.train.opening import Opening, OpenRun, open_run
from wuneng.train.pending import train_pending
from wuneng.train.signals import Interrupted, how_to_resume
from wuneng.train.starting_point import Sources
from wuneng.train.workers import Workers

if TYPE_CHECKING:
    from wuneng.tables import Table

__all__ = ["SweepResults", "run_sweep"]


@dataclass(frozen=True)
class SweepResults:
    """What a finished sweep leaves."""

    directory: Path
    record: dict[str, Any]
    """The content of results.json."""

    @property
    def table(self) -> Table:
        """One row for each point and arm."""
        return sweep_table(self.record)

    @property
    def tables(self) -> list[Table]:
        """What is shown at the end."""
        return [self.table]

    @property
    def sentence(self) -> str:
        """The best point of every arm."""
        return str(self.record["summary"])


def run_sweep(
    written: WrittenRecipe,
    out: Path | None = None,
    resume: str = "auto",
    display: Display | None = None,
    *,
    runs_root: Path = RUNS_ROOT,
    command_line: Sequence[str] | None = None,
    sources: Sources | None = None,
    verify: bool = True,
    workers: Workers | None = None,
) -> SweepResults:
    """Train every arm from every seed at every point. Arguments as of ``wuneng.train.run``.

    An arm whose loss is not finite any more at a point has no figure there, and that is a result.

    Raises:
        UnitsFailed: something else failed; the rest was trained all the same.
        InputError, DamagedError, DiskError, Interrupted: as ``wuneng.train.run``.
    """
    require_one_process()
    if written.recipe.study is not None:
        raise InputError("study: expected a recipe with sweep here, got one with study")
    recipe, points = written.recipe, points_of(written.recipe.sweep)
    display = make_display() if display is None else display
    opening = Opening(display, command_line, sources, verify, workers or Workers())
    units = len(points) * len(recipe.arms) * len(recipe.seeds)
    with (
        closing(display),
        open_parent(written, out, resume, runs_root, opening, units) as parent,
        ExitStack() as stack,
    ):
        runs = [
            stack.enter_context(_open_point(parent, point, runs_root, opening)) for point in points
        ]
        try:
            failures = train_pending(
                [(run, run.pending()) for run in runs],
                opening,
                lambda: parent.directory.update_latest(runs_root),
            )
        except Interrupted as stopped:
            where = how_to_resume(parent.directory.path)
            raise Interrupted(f"{stopped}. {where}", stopped.signal_number) from None
        return _finished(parent, points, runs, failures, units)


def _open_point(parent: Parent, point: Point, runs_root: Path, opening: Opening) -> Any:
    recipe = parent.variant(point.name, point.values)
    place = parent.directory.path / point.name
    return open_run(recipe, place, "auto", runs_root, opening, f"{point.name}: ")


def _finished(
    parent: Parent,
    points: Sequence[Point],
    runs: Sequence[OpenRun],
    failures: Sequence[Failure],
    units: int,
) -> SweepResults:
    broken = [failure for failure in failures if not failure.diverged]
    if broken:
        raise UnitsFailed(broken, units, parent.directory.path)
    entries = []
    for run in runs:
        entries.append(arm_entries(run))
        if all(entries[-1].values()):
            run.write_results()
    record = sweep_record(parent, points, entries)
    record["failed"] = {failure.unit: failure.reason for failure in failures}
    return SweepResults(parent.directory.path, parent.write_results(record))


def sweep_record(
    parent: Parent, points: Sequence[Point], entries: Sequence[dict[str, dict[str, Any] | None]]
) -> dict[str, Any]:
    """results.json: ``points`` with their arms, ``best`` of each arm, and which run its model is
    in (``models``)."""
    recipe = parent.recipe
    known = [entry for arms in entries for entry in arms.values() if entry is not None]
    figures = deciding_figures(known[0]["quality"]) if known else []
    best = {}
    for arm in recipe.arms:
        values = [figure_of(arms[arm], figures) for arms in entries]
        first = best_first(values)[0]
        if entries[first][arm] is None:
            continue
        chosen = points[first].values
        best[arm] = {
            "point": points[first].name,
            "values": dict(chosen),
            "figure": values[first],
            "at_edge": list(edge_paths(recipe.sweep, chosen)),
        }
    record: dict[str, Any] = {
        "schema": 1,
        "kind": "sweep",
        "name": recipe.name,
        "reference": recipe.reference_arm,
        "sweep": {path: list(values) for path, values in recipe.sweep.items()},
        "figures": figures,
        "points": [
            {"point": point.name, "values": dict(point.values), "arms": arms}
            for point, arms in zip(points, entries, strict=True)
        ],
        "best": best,
        "models": {arm: found["point"] for arm, found in best.items()},
    }
    record["summary"] = sweep_sentence(record)
    return record
