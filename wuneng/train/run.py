"""A whole recipe: every arm from every seed, in turn or side by side, and the comparison of them.

An arm is finished when its ``result.json`` exists; a run is when ``results.json`` does. Whatever
kills the process in between, the same command takes up where the last checkpoint stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wuneng.distributed.joining import joined
from wuneng.distributed.launched import launched
from wuneng.errors import InputError, NonFiniteError
from wuneng.recipe import Recipe
from wuneng.records import RUNS_ROOT, RunDirectory
from wuneng.train.display import Display, UnseenDisplay, make_display
from wuneng.train.failures import UnitsFailed
from wuneng.train.opening import Opening, OpenRun, open_run
from wuneng.train.paired_table import paired_table
from wuneng.train.pending import train_pending
from wuneng.train.signals import Interrupted, how_to_resume
from wuneng.train.starting_point import Sources
from wuneng.train.step_range import StepRange
from wuneng.train.summary import results_table
from wuneng.train.workers import Workers

if TYPE_CHECKING:
    from wuneng.tables import Table

__all__ = ["Results", "run"]


@dataclass(frozen=True)
class Results:
    """What a finished run leaves."""

    directory: Path
    record: dict[str, Any]
    """The content of results.json."""

    @property
    def table(self) -> Table:
        """The arms side by side, for a terminal."""
        return results_table(self.record)

    @property
    def paired(self) -> Table | None:
        """The paired differences of the arms; None where nothing was paired."""
        return paired_table(self.record)

    @property
    def tables(self) -> list[Table]:
        """Both, where there are both."""
        return [table for table in (self.table, self.paired) if table is not None]

    @property
    def sentence(self) -> str:
        """What the figures do and do not show."""
        return str(self.record["summary"])


def run(
    recipe: Recipe,
    out: RunDirectory | Path | None = None,
    resume: str = "auto",
    display: Display | None = None,
    *,
    runs_root: Path = RUNS_ROOT,
    command_line: Sequence[str] | None = None,
    sources: Sources | None = None,
    verify: bool = True,
    workers: Workers | None = None,
    profile: StepRange | None = None,
) -> Results:
    """Train every arm of ``recipe`` from every seed and compare them.

    Others that train the same recipe in the same ``out`` share its arms and seeds with this one;
    each comes back when all are trained.

    Args:
        out: where the run goes; default ``runs_root/<recipe name>``, numbered if that is taken.
        resume: ``auto`` (the newest unfinished run of the same recipe, if there is one), ``never``,
            or a run directory. On the CPU the run then continues bit for bit as if never stopped.
        display: who watches; default a panel on a terminal and plain lines elsewhere.
        runs_root: gets the ``latest`` link.
        command_line: goes into environment.json; default this process's.
        sources: finds, and converts where need be, what ``init_from`` names; by default only
            models that are WuNeng already.
        verify: compare what finished arms left, and models that arms start from, with their
            checksums.
        profile: steps of every arm that torch's profiler watches (``<arm>/profile``).
        workers: how many arms train side by side; default one for each GPU, on the CPU one.

    Raises:
        DamagedError: a finished file is not what was written.
        InputError: the recipe does not fit the data, the machine or the run to be resumed. A run
            in which nothing was trained yet then leaves nothing behind.
        NonFiniteError: the loss or gradient of the only arm that was left to train is not finite.
        UnitsFailed: arms failed; the others were trained all the same.
        DiskError: the disk is full; the last good checkpoint stands.
        Interrupted: a signal came; what was done is saved (``exit_code`` 130 or 143).
    """
    info = launched()
    display = make_display() if display is None else display
    workers = workers or Workers()
    if info is not None:
        if (workers.number or 1) > 1:
            raise InputError(
                f"--jobs {workers.number}: expected none where several processes train each arm "
                "together"
            )
        workers = replace(workers, number=1, together=1)
        display = display if info.rank == 0 else UnseenDisplay()
    place = out.path if isinstance(out, RunDirectory) else out
    with (
        closing(display),
        joined(info, recipe.device, recipe.parallel.timeout) as processes,
    ):
        opening = Opening(display, command_line, sources, verify, workers, processes, profile)
        return run_opened(recipe, place, resume, runs_root, opening)


def run_opened(
    recipe: Recipe, place: Path | None, resume: str, runs_root: Path, opening: Opening
) -> Results:
    """:func:`run` with what a command brings, in each of ``opening.processes``."""
    if not recipe.is_single:
        raise InputError(
            f"{recipe.name} has sweep or study, and so states several runs: `wuneng train` and "
            "wuneng.study train it"
        )
    with open_run(recipe, place, resume, runs_root, opening) as opened:
        directory = opened.directory
        try:
            pending = opened.pending()
            failures = train_pending([(opened, pending)], opening, lambda: opened.begun(runs_root))
        except Interrupted as stopped:
            where = how_to_resume(directory.path)
            raise Interrupted(f"{stopped}. {where}", stopped.signal_number) from None
        if len(pending) == 1 and failures and failures[0].diverged:
            raise NonFiniteError(failures[0].reason)
        if failures:
            raise UnitsFailed(failures, len(pending), directory.path)
        return finish(opened, runs_root)


def finish(opened: OpenRun, runs_root: Path) -> Results:
    """results.json of a run whose arms are all trained."""
    opened.begun(runs_root)
    return Results(opened.directory.path, opened.write_results())
