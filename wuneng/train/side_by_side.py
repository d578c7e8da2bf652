"""Units of a run next to each other, each in a process of its own.

A comparison is many small trainings that need nothing of each other. A process trains one unit at
a time, as a run with nothing else in it would and with as many threads, so its bits are the same.
Processes are spawned, never forked: torch's threads do not survive a fork.

The first Ctrl-C or SIGTERM asks all of them to finish their step and save; a second Ctrl-C kills
them, and their last checkpoints stand.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from wuneng.train.display import Display, Progress
from wuneng.train.failures import Failure
from wuneng.train.signals import Interrupted, StopSignals, stop_warning
from wuneng.train.unit_process import Ended, Message, UnitJob, Warned, work

__all__ = ["SideBySide"]

_SECONDS_BETWEEN_LOOKS = 0.2


@dataclass
class _Process:
    """One of the processes: the end of the pipe to it, and what it trains at this moment."""

    slot: int
    process: BaseProcess
    pipe: Connection
    label: str = ""
    """Empty while it waits for a unit."""


@dataclass
class SideBySide:
    """Trains units; ``devices`` has one entry for each that may run at the same time."""

    display: Display
    devices: Sequence[str]
    failures: list[Failure] = field(default_factory=list)
    _processes: list[_Process] = field(default_factory=list)
    _told: set[str] = field(default_factory=set)
    _done: int = 0
    _all: int = 0

    def train(self, jobs: Sequence[tuple[str, UnitJob]]) -> list[Failure]:
        """Train every unit; ``jobs`` have what to call it first.

        Returns:
            Those that failed.

        Raises:
            Interrupted: a signal came; what was begun is saved.
        """
        pending, self._all = list(jobs), len(jobs)
        with StopSignals(self._warn_of_stop, "the run") as stop, self._none_left_behind():
            asked = False
            while self._busy() or (pending and stop.requested is None):
                while pending and stop.requested is None and len(self._busy()) < len(self.devices):
                    self._start(*pending.pop(0))
                if stop.requested is not None and not asked:
                    asked = True
                    for busy in self._busy():
                        busy.process.terminate()  # SIGTERM: see ``StopSignals``
                self._listen(stopping=asked)
        if stop.requested is not None:
            raise Interrupted(self._left_off(), stop.requested)
        return self.failures

    def _busy(self) -> list[_Process]:
        return [process for process in self._processes if process.label]

    def _start(self, label: str, job: UnitJob) -> None:
        idle = [process for process in self._processes if not process.label]
        chosen = idle[0] if idle else self._new_process()
        chosen.label = label
        with suppress(OSError):  # it has died: found out when it is listened to
            chosen.pipe.send(replace(job, device=self.devices[chosen.slot]))
        self._show()

    def _new_process(self) -> _Process:
        taken = {process.slot for process in self._processes}
        slot = min(set(range(len(self.devices))) - taken)
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs,))
        with _ctrl_c_held_back():
            process.start()
        theirs.close()
        self._processes.append(_Process(slot, process, ours))
        return self._processes[-1]

    def _listen(self, *, stopping: bool) -> None:
        """What the processes have to say, and which of them have died."""
        by_pipe = {process.pipe: process for process in self._processes}
        for pipe in wait(list(by_pipe), _SECONDS_BETWEEN_LOOKS):
            assert isinstance(pipe, Connection)
            process = by_pipe[pipe]
            try:
                self._hear(process, pipe.recv(), stopping=stopping)
            except (EOFError, OSError):
                self._bury(process, stopping=stopping)

    def _hear(self, process: _Process, message: Message, *, stopping: bool) -> None:
        if isinstance(message, Progress):
            self.display.stepped(replace(message, unit=process.label))
        elif isinstance(message, Ended):
            self._finish(process, message, stopping=stopping)
        elif message.text not in self._told:
            self._told.add(message.text)
            if isinstance(message, Warned):
                self.display.warn(message.text)
            else:
                self.display.note(message.text)

    def _bury(self, process: _Process, *, stopping: bool) -> None:
        """A process that has died, of whatever."""
        process.process.join()
        process.pipe.close()
        self._processes.remove(process)
        if process.label:
            died = Ended(_how_it_died(process.process.exitcode), stopped=stopping)
            self._finish(process, died, stopping=stopping)

    def _finish(self, process: _Process, ended: Ended, *, stopping: bool) -> None:
        label, process.label = process.label, ""
        if not ended.reason:
            self._done += 1
        elif not (ended.stopped and stopping):
            self.failures.append(Failure(label, ended.reason, ended.diverged))
            trace = f"\n{ended.trace}" if ended.trace else ""
            self.display.warn(f"{label}: {ended.reason}{trace}")
        self._show()

    def _show(self) -> None:
        self.display.side_by_side([busy.label for busy in self._busy()], self._done, self._all)

    def _warn_of_stop(self, name: str) -> None:
        # Each process would say so too.
        self._told.update(stop_warning(number.name) for number in (signal.SIGINT, signal.SIGTERM))
        self.display.warn(stop_warning(name))

    def _left_off(self) -> str:
        text = f"stopped by a signal; {self._done} of {self._all} finished, what was begun is saved"
        failed = "; ".join(f"{failure.unit} failed: {failure.reason}" for failure in self.failures)
        return f"{text}; {failed}" if failed else text

    @contextmanager
    def _none_left_behind(self) -> Iterator[None]:
        """However the block ends, no process of ours outlives it."""
        try:
            yield
        finally:
            for process in self._processes:
                process.process.kill()
            for process in self._processes:
                process.process.join()
            self._processes.clear()


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """A process that starts in the block ignores Ctrl-C from its first moment; ``work`` arranges
    for the rest. Ours is answered when the block ends."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _how_it_died(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = ", as the system does where memory runs out" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with exit code {code} and said nothing"
