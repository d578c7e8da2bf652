"""Train what is left of one run or of several, in turn or side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from wuneng.foreign import is_trusted
from wuneng.train.failures import Failure
from wuneng.train.opening import Opening, OpenRun
from wuneng.train.plan import plan_run
from wuneng.train.side_by_side import SideBySide
from wuneng.train.unit_process import UnitJob
from wuneng.train.units import (
    Unit,
    check_precision,
    prepare,
    reproducible,
    say_where_tokens_are_kept,
    train_in_turn,
)

__all__ = ["train_pending"]

Pending = Sequence[tuple[OpenRun, Sequence[Unit]]]


def train_pending(runs: Pending, opening: Opening, begun: Callable[[], None]) -> list[Failure]:
    """Train the units of each run that are not finished.

    Args:
        begun: called once data and arms are known to fit, before the first trains.

    Returns:
        Those that failed.

    Raises:
        Interrupted: a signal came; what was done is saved.
        InputError: an arm does not fit the data or the machine. Found before the first trains.
        DiskError, CheckpointError: one after another, the first ends all.
    """
    runs = [(run, units) for run, units in runs if units]
    if not runs:
        return []
    devices = opening.workers.devices(runs[0][0].recipe.device)
    devices = devices[: sum(len(units) for _, units in runs)]
    if len(devices) == 1:
        return [failure for run, units in runs for failure in _in_turn(run, units, opening, begun)]
    return _side_by_side(runs, devices, opening, begun)


def _in_turn(
    run: OpenRun, units: Sequence[Unit], opening: Opening, begun: Callable[[], None]
) -> list[Failure]:
    with reproducible(run.recipe.training.num_threads, run.session.device):
        say_where_tokens_are_kept(run.recipe.data, opening.display)
        wanted = {unit.arm for unit in units}
        plan = plan_run(run.recipe, opening.sources, arms=wanted, text="read")
        check_precision(plan, run.session.device)
        failures = train_in_turn(plan, units, run.session, begun)
    return [replace(failure, unit=f"{run.prefix}{failure.unit}") for failure in failures]


def _side_by_side(
    runs: Pending, devices: Sequence[str], opening: Opening, begun: Callable[[], None]
) -> list[Failure]:
    jobs = []
    for run, units in runs:
        plan = plan_run(run.recipe, opening.sources, arms={unit.arm for unit in units}, text="read")
        check_precision(plan, run.session.device)
        jobs += [
            (
                f"{run.prefix}{unit}",
                UnitJob(
                    run.directory.path,
                    unit,
                    run.recipe.device,
                    opening.check,
                    opening.sources,
                    is_trusted(),
                    opening.workers.within,
                ),
            )
            for unit in units
        ]
        say_where_tokens_are_kept(run.recipe.data, opening.display)
        # Text that is missing is told once, and what is tokenised here is read by the others.
        opening.display.note(prepare(plan, units[0].seed).description)
    begun()
    return SideBySide(opening.display, devices).train(jobs)
