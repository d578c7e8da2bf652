"""Commands that work on one run directory, each under a host name of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from wuneng.recipe import read_written
from wuneng.records.claimant import Claimant
from wuneng.study import run_study, run_sweep
from wuneng.train import Workers, arm_run, run
from wuneng.train.display import PlainDisplay
from wuneng.train.unit_queue import UnitQueue

BEAT, PATIENCE = 0.2, 8
"""Of claims: a lease of 1.6 seconds."""
UNHURRIED = 1500
"""Patience where nobody is to be taken over from: five minutes."""


class Hosts:
    """Starts them, from a process that has everything imported."""

    def __init__(self, recipe: Path, out: Path) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.hosts.workers"])
        self.recipe, self.out = recipe, out
        self.log = out.with_name(f"{out.name}.log")
        """What they say."""
        self.events = out.with_name(f"{out.name}.events")
        """A line for each unit that one of them has finished."""
        self.started: list[BaseProcess] = []

    def start(
        self,
        host: str,
        jobs: int = 1,
        stop_at: tuple[str, int] | None = None,
        meeting: Any = None,
    ) -> Any:
        """One more; ``stop_at`` is the arm and step at which it stops itself, ``meeting`` a barrier
        at which it waits for the others before its first unit."""
        told = (self.recipe, self.out, host, jobs, self.log, self.events, stop_at, meeting)
        process = self._context.Process(target=work, args=told)
        process.start()
        self.started.append(process)
        return process

    def start_together(self, *names: str) -> list[Any]:
        """One for each name; none trains before all of them know what is to be trained, and none is
        taken for dead however busy the machine is."""
        self._meeting = self._context.Barrier(len(names))  # is gone once nobody here holds it
        return [self.start(host, meeting=self._meeting) for host in names]

    def finished(self) -> list[str]:
        """Names of units, in the order in which they were finished."""
        return self.events.read_text().split() if self.events.exists() else []

    def said(self) -> str:
        """All that they said."""
        return self.log.read_text(encoding="utf-8") if self.log.exists() else ""


@contextmanager
def hosts(recipe: Path, out: Path) -> Iterator[Hosts]:
    """None of them outlives the block."""
    found = Hosts(recipe, out)
    try:
        yield found
    finally:
        for process in found.started:
            process.kill()
            process.join()


def work(
    recipe: Path,
    out: Path,
    host: str,
    jobs: int,
    log: Path,
    events: Path,
    stop_at: tuple[str, int] | None,
    meeting: Any,
) -> None:
    """`wuneng train RECIPE --out OUT` as on ``host``; the exit code says how it ended."""
    stream = log.open("a", buffering=1, encoding="utf-8")
    sys.stderr = stream
    _note_finished_units(events)
    claimant = Claimant(host, host, BEAT, PATIENCE if meeting is None else UNHURRIED)
    if meeting is not None:
        _meet(meeting)
    written = read_written(recipe)
    settings: dict[str, Any] = {
        "display": _Stopping(stream, stop_at) if stop_at else PlainDisplay(stream),
        "workers": Workers(jobs, claimant=claimant),
    }
    if written.recipe.is_single:
        run(written.recipe, out, **settings)
    elif written.recipe.study is not None:
        run_study(written, out, **settings)
    else:
        run_sweep(written, out, **settings)


def _note_finished_units(events: Path) -> None:
    save = arm_run.save_record

    def noted(place: Any, record: Any) -> None:
        save(place, record)
        with events.open("a") as file:
            file.write(f"{record['arm']}/seed-{record['seed']}\n")

    arm_run.save_record = noted  # type: ignore[assignment]


def _meet(barrier: Any) -> None:
    """Wait for the others at the first queue of units, once it has looked at what there is."""
    wait, met = UnitQueue.wait, False

    def together(queue: Any) -> Any:
        nonlocal met
        if not met:
            barrier.wait(600)
            met = True
        return wait(queue)

    UnitQueue.wait = together  # type: ignore[method-assign]


class _Stopping(PlainDisplay):
    """Stops its process at a step, as a machine that is suspended does."""

    def __init__(self, stream: Any, at: tuple[str, int]) -> None:
        super().__init__(stream)
        self._at = at

    def stepped(self, progress: Any) -> None:
        super().stepped(progress)
        if (progress.arm, progress.step) == self._at:
            os.kill(os.getpid(), signal.SIGSTOP)
