"""Train what is left of one run or of several, in turn or side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from wuneng.distributed.member import Coming
from wuneng.foreign import is_trusted
from wuneng.records import ArmDirectory
from wuneng.records.claim import ClaimLost
from wuneng.train.arm_run import Session
from wuneng.train.failures import Failure
from wuneng.train.opening import Opening, OpenRun
from wuneng.train.plan import RunPlan
from wuneng.train.side_by_side import SideBySide
from wuneng.train.spread import arm_degrees
from wuneng.train.unit_process import UnitJob
from wuneng.train.unit_queue import UnitQueue
from wuneng.train.units import (
    Unit,
    UnitTraining,
    check_precision,
    prepare,
    reproducible,
    say_where_tokens_are_kept,
)

__all__ = ["train_pending"]

Pending = Sequence[tuple[OpenRun, Sequence[Unit]]]
Planned = tuple[OpenRun, Sequence[Unit], RunPlan]
T = TypeVar("T")


def train_pending(runs: Pending, opening: Opening, begun: Callable[[], None]) -> list[Failure]:
    """Train the units of each run that are not finished, as far as no other process does.

    Args:
        begun: called once data and arms are known to fit, before the first trains.

    Returns:
        Those that failed, here or elsewhere; all others are finished.

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
    say_where_tokens_are_kept([plan.data for _, _, plan in planned], opening.display)
    if len(devices) == 1 and opening.workers.together == 1:
        return _in_turn(planned, opening, begun)
    return _side_by_side(planned, devices, opening, begun)


def _planned(run: OpenRun, units: Sequence[Unit], opening: Opening) -> Planned:
    with reproducible(run.threads, run.session.device):
        plan = run.planned({unit.arm for unit in units})
        check_precision(plan, run.session.device)
        _check_spread(plan, run.session, opening.workers.together)
    return run, units, plan


def _check_spread(plan: RunPlan, session: Session, together: int) -> None:
    """InputError for an arm that these processes, or those to be started, cannot train together."""
    processes = Coming(together) if together > 1 else session.processes
    for arm in plan.arms.values():
        arm_degrees(arm, session.parallel, processes, session.device)


def _in_turn(
    planned: Sequence[Planned], opening: Opening, begun: Callable[[], None]
) -> list[Failure]:
    """One at a time, in this process; of several, the first chooses."""
    claimant, processes = opening.workers.claimant, opening.processes
    trainings = [(run, UnitTraining(plan, run.session, begun)) for run, _, plan in planned]
    units = [(number, unit) for number, (_, units, _) in enumerate(planned) for unit in units]
    queue = UnitQueue(
        [_named(planned[number][0], unit, (number, unit)) for number, unit in units],
        claimant,
        opening.display.note,
    )
    while True:
        entry = processes.first(queue.wait)
        if entry is None:
            return processes.first(lambda: queue.failures)
        number, unit = entry.job
        run, training = trainings[number]
        try:
            with reproducible(run.threads, run.session.device):
                failure = training.train(unit, entry.offer, claimant)
        except ClaimLost as lost:
            opening.display.note(str(lost))
            queue.put_back(entry)
            continue
        if failure is None:
            queue.finished()
            continue
        if len(units) > 1:
            opening.display.warn(f"{entry.label}: {failure.reason}")
        queue.failed(replace(failure, unit=entry.label))


def _side_by_side(
    planned: Sequence[Planned], devices: Sequence[str], opening: Opening, begun: Callable[[], None]
) -> list[Failure]:
    jobs = []
    for run, units, plan in planned:
        jobs += [_named(run, unit, _job(run, unit, opening)) for unit in units]
        # Text that is missing is told once, and what is tokenised here is read by the others.
        opening.display.note(prepare(plan, units[0].seed).description)
    begun()
    queue = UnitQueue(jobs, opening.workers.claimant, opening.display.note)
    return SideBySide(opening.display, devices, opening.workers.together).train(queue)


def _named(run: OpenRun, unit: Unit, job: T) -> tuple[str, ArmDirectory, T]:
    place = run.outline.place(run.directory, unit.arm, unit.seed)
    return f"{run.prefix}{unit}", place, job


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
        claimant=opening.workers.claimant,
        parallel=run.session.parallel,
    )
