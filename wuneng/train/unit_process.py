"""The processes that ``side_by_side`` starts: each trains one unit of a run at a time.

A process is given its units through a pipe and answers with what a display would be told, and last
with how the unit ended. Importing torch takes longer than training a small unit, so it is given
another one then. It has a session of its own: a Ctrl-C in the terminal reaches the parent alone,
which asks its processes to stop. When the parent is gone, however it went, they ask themselves.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path

from wuneng.distributed.member import Member, joined_member
from wuneng.errors import MissingProcess, WuNengError
from wuneng.foreign import remote_code_trusted
from wuneng.recipe import Parallel, load_recipe
from wuneng.records import RunDirectory
from wuneng.records.claim import ClaimLost
from wuneng.records.claimant import Claimant
from wuneng.train.arm_run import Session
from wuneng.train.display import Progress, UnseenDisplay
from wuneng.train.failures import Failure
from wuneng.train.plan import plan_run
from wuneng.train.signals import Interrupted
from wuneng.train.starting_point import Sources
from wuneng.train.step_range import StepRange
from wuneng.train.unit_queue import Offer
from wuneng.train.units import Unit, UnitTraining, reproducible

__all__ = ["Ended", "Message", "Note", "UnitJob", "Warned", "work"]

_SECONDS_BETWEEN_STEPS = 0.25
"""Steps come faster than anybody reads; logged ones are all told."""


@dataclass(frozen=True)
class UnitJob:
    """What a process has to know to train one unit."""

    run: Path
    """Its recipe.yaml says the rest."""
    unit: Unit
    device: str
    check: bool
    sources: Sources | None
    trusted: bool
    """Code that comes with a tokenizer or a model may run."""
    within: Callable[[], AbstractContextManager[None]]
    """What the process runs in, as the silence of a command."""
    profile: StepRange | None = None
    """Steps that are profiled."""
    claimant: Claimant = field(default_factory=Claimant)
    offer: Offer | None = None
    """Of the unit, as the parent saw it."""
    parallel: Parallel = field(default_factory=Parallel)
    """How processes that train it together share it."""
    member: Member | None = None
    """Which of them this process is."""


@dataclass(frozen=True)
class Note:
    """For ``Display.note``."""

    text: str


@dataclass(frozen=True)
class Warned:
    """For ``Display.warn``."""

    text: str


@dataclass(frozen=True)
class Ended:
    """The last message about a unit."""

    reason: str = ""
    """Why the unit is not finished; empty where it is."""
    stopped: bool = False
    """By a signal, and saved."""
    diverged: bool = False
    """The loss was not finite any more."""
    taken: bool = False
    """By a process of another command."""
    missing: bool = False
    """Another process of the group was: that one knows why."""
    trace: str = ""
    """Of an error that is a bug."""


Message = Progress | Note | Warned | Ended


def work(parent: Connection) -> None:
    """Train the units that ``parent`` sends, until it sends None or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setsid"):
        with suppress(OSError):
            os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_stop_with_the_parent, daemon=True).start()
    with suppress(EOFError, OSError):
        while (job := parent.recv()) is not None:
            _tell(parent, _outcome(job, parent))


def _outcome(job: UnitJob, parent: Connection) -> Ended:
    try:
        with job.within(), remote_code_trusted(job.trusted):
            failure = _train(job, _Relay(parent))
    except Interrupted as stopped:
        return Ended(str(stopped), stopped=True)
    except ClaimLost as lost:
        return Ended(str(lost), taken=True)
    except WuNengError as error:
        return Ended(str(error), missing=isinstance(error, MissingProcess))
    except MemoryError as error:
        return Ended(f"not enough memory: {error or 'the system gave no more'}")
    except Exception as error:
        return Ended(f"{type(error).__name__}: {error}", trace=traceback.format_exc())
    return Ended(failure.reason, diverged=failure.diverged) if failure else Ended()


def _train(job: UnitJob, relay: _Relay) -> Failure | None:
    run = RunDirectory(job.run)
    recipe = load_recipe(run.recipe)
    with (
        joined_member(job.member, job.device, job.parallel.timeout) as processes,
        reproducible(recipe.training.num_threads, processes.device(job.device)),
    ):
        arms = {job.unit.arm}
        plan = plan_run(
            recipe,
            job.sources,
            arms=arms,
            text="read",
            processes=processes,
            learned=run.learned_tokenizer,
        )
        display = relay if processes.is_first else UnseenDisplay()
        session = Session(
            *(run, processes.device(job.device), display, job.check, processes, job.parallel),
            profile=job.profile,
        )
        assert job.offer is not None
        return UnitTraining(plan, session).train(job.unit, job.offer, job.claimant)


def _stop_with_the_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def _tell(parent: Connection, message: Message) -> None:
    with suppress(OSError):  # there is no parent any more
        parent.send(message)


class _Relay:
    """The display of a unit's process."""

    def __init__(self, parent: Connection) -> None:
        self._parent = parent
        self._last = 0.0

    def stepped(self, progress: Progress) -> None:
        """Logged steps, and of the others a few a second."""
        now = time.monotonic()
        if progress.logged or now - self._last > _SECONDS_BETWEEN_STEPS:
            self._last = now
            _tell(self._parent, progress)

    def note(self, message: str) -> None:
        """Passed on."""
        _tell(self._parent, Note(message))

    def warn(self, message: str) -> None:
        """Passed on."""
        _tell(self._parent, Warned(message))

    def side_by_side(self, running: Sequence[str], done: int, units: int) -> None:
        """This process trains one."""

    def reading(self, what: str, share: float) -> None:
        """Several processes wait for the same text: whoever watches is told of training alone."""

    def close(self) -> None:
        """Nothing to undo."""
