"""Train what is left of one run or of several, in turn or side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from wuneng.foreign import is_trusted
from wuneng.train.arm_run import Session
from wuneng.train.failures import Failure
from wuneng.train.opening import Opening, OpenRun
from wuneng.train.plan import RunPlan
from wuneng.train.side_by_side import SideBySide
from wuneng.train.spread import arm_degrees
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
Planned = tuple[OpenRun, Sequence[Unit], RunPlan]


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
    devices = opening.workers.devices(runs[0][0].device)
    devices = devices[: sum(len(units) for _, units in runs)]
    planned = [_planned(run, units, opening) for run, units in runs]
    if len(devices) == 1:
        return [failure for one in planned for failure in _in_turn(*one, begun)]
    return _side_by_side(planned, devices, opening, begun)


def _planned(run: OpenRun, units: Sequence[Unit], opening: Opening) -> Planned:
    with reproducible(run.threads, run.session.device):
        plan = run.planned({unit.arm for unit in units})
        say_where_tokens_are_kept(plan.data, opening.display)
        check_precision(plan, run.session.device)
        _check_spread(plan, run.session)
    return run, units, plan


def _check_spread(plan: RunPlan, session: Session) -> None:
    """InputError for an arm that these processes cannot train together."""
    for arm in plan.arms.values():
        arm_degrees(arm, session.parallel, session.processes, session.device)


def _in_turn(
    run: OpenRun, units: Sequence[Unit], plan: RunPlan, begun: Callable[[], None]
) -> list[Failure]:
    with reproducible(run.threads, run.session.device):
        failures = train_in_turn(plan, units, run.session, begun)
    return [replace(failure, unit=f"{run.prefix}{failure.unit}") for failure in failures]


def _side_by_side(
    planned: Sequence[Planned], devices: Sequence[str], opening: Opening, begun: Callable[[], None]
) -> list[Failure]:
    jobs = []
    for run, units, plan in planned:
        jobs += [(f"{run.prefix}{unit}", _job(run, unit, opening)) for unit in units]
        # Text that is missing is told once, and what is tokenised here is read by the others.
        opening.display.note(prepare(plan, units[0].seed).description)
    begun()
    return SideBySide(opening.display, devices).train(jobs)


def _job(run: OpenRun, unit: Unit, opening: Opening) -> UnitJob:
    return UnitJob(
        run=run.directory.path,
        unit=unit,
        device=run.device,
        check=opening.check,
        sources=opening.sources,
        trusted=is_trusted(),
        within=opening.workers.within,
        profile=opening.profile,
    )
