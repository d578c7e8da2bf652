"""Units of a run next to each other, each in a process of its own, or in several together.

A comparison is many small trainings that need nothing of each other. A process trains one unit at
a time, as a run with nothing else in it would and with as many threads, so its bits are the same.
Processes are spawned, never forked: torch's threads do not survive a fork.

The first Ctrl-C or SIGTERM asks all of them to finish their step and save; a second Ctrl-C kills
them, and their last checkpoints stand.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from typing import Any

from wuneng.distributed.member import open_store
from wuneng.train.display import Display, Progress
from wuneng.train.failures import Failure
from wuneng.train.signals import Interrupted, StopSignals, stop_warning
from wuneng.train.unit_group import GroupProcess, UnitGroup, start_group
from wuneng.train.unit_process import Ended, Message, UnitJob, Warned
from wuneng.train.unit_queue import Entry, UnitQueue

__all__ = ["SideBySide"]

_SECONDS_BETWEEN_LOOKS = 0.2


@dataclass
class SideBySide:
    """Trains units; ``devices`` has one entry for each that may run at the same time."""

    display: Display
    devices: Sequence[str]
    together: int = 1
    """Processes that train each unit."""
    _groups: list[UnitGroup] = field(default_factory=list)
    _store: Any = None
    """In which the processes of a group meet."""
    _told: set[str] = field(default_factory=set)
    _queue: UnitQueue[UnitJob] = field(init=False)

    def train(self, queue: UnitQueue[UnitJob]) -> list[Failure]:
        """Train every unit that no other command trains.

        Returns:
            Those that failed.

        Raises:
            Interrupted: a signal came; what was begun is saved.
        """
        self._queue = queue
        with StopSignals(self._warn_of_stop, "the run") as stop, self._none_left_behind():
            asked = False
            while self._busy() or (queue and stop.requested is None):
                while stop.requested is None and len(self._busy()) < len(self.devices):
                    entry = queue.next()
                    if entry is None:
                        break
                    self._start(entry)
                if stop.requested is not None and not asked:
                    asked = True
                    for busy in self._busy():
                        busy.stop()
                self._listen(stopping=asked)
        if stop.requested is not None:
            raise Interrupted(self._left_off(), stop.requested)
        return queue.failures

    def _busy(self) -> list[UnitGroup]:
        return [group for group in self._groups if group.entry]

    def _start(self, entry: Entry[UnitJob]) -> None:
        idle = [group for group in self._groups if not group.entry]
        chosen = idle[0] if idle else self._new_group()
        chosen.give(entry, self.devices[chosen.slot], self._store.port if self._store else 0)
        self._show()

    def _new_group(self) -> UnitGroup:
        taken = {group.slot for group in self._groups}
        if self.together > 1 and self._store is None:
            self._store = open_store()
        slot = min(set(range(len(self.devices))) - taken)
        self._groups.append(start_group(slot, self.together))
        return self._groups[-1]

    def _listen(self, *, stopping: bool) -> None:
        """What the processes have to say, and which of them have died."""
        by_pipe = {
            one.pipe: (group, one)
            for group in self._groups
            for one in group.members
            if not one.pipe.closed
        }
        for pipe in wait(list(by_pipe), _SECONDS_BETWEEN_LOOKS):
            assert isinstance(pipe, Connection)
            group, one = by_pipe[pipe]
            try:
                self._hear(group, one, pipe.recv())
            except (EOFError, OSError):
                group.died(one, stopping=stopping)
            ended = group.outcome() if group.entry else None
            if ended is not None:
                self._finish(group, ended, stopping=stopping)
            if not group.entry and not group.usable and group in self._groups:
                group.kill()
                self._groups.remove(group)

    def _hear(self, group: UnitGroup, one: GroupProcess, message: Message) -> None:
        if isinstance(message, Progress):
            assert group.entry is not None
            self.display.stepped(replace(message, unit=group.entry.label))
        elif isinstance(message, Ended):
            one.ended = message
        elif message.text not in self._told:
            self._told.add(message.text)
            if isinstance(message, Warned):
                self.display.warn(message.text)
            else:
                self.display.note(message.text)

    def _finish(self, group: UnitGroup, ended: Ended, *, stopping: bool) -> None:
        entry, group.entry = group.entry, None
        assert entry is not None
        if not ended.reason:
            self._queue.finished()
        elif ended.taken:
            self._queue.put_back(entry)
        elif not (ended.stopped and stopping):
            self._queue.failed(Failure(entry.label, ended.reason, ended.diverged))
            trace = f"\n{ended.trace}" if ended.trace else ""
            self.display.warn(f"{entry.label}: {ended.reason}{trace}")
        self._show()

    def _show(self) -> None:
        running = [busy.entry.label for busy in self._busy() if busy.entry]
        self.display.side_by_side(running, self._queue.done, self._queue.total)

    def _warn_of_stop(self, name: str) -> None:
        # Each process would say so too.
        self._told.update(stop_warning(number.name) for number in (signal.SIGINT, signal.SIGTERM))
        self.display.warn(stop_warning(name))

    def _left_off(self) -> str:
        done, total = self._queue.done, self._queue.total
        text = f"stopped by a signal; {done} of {total} finished, what was begun is saved"
        failures = self._queue.failures
        failed = "; ".join(f"{failure.unit} failed: {failure.reason}" for failure in failures)
        return f"{text}; {failed}" if failed else text

    @contextmanager
    def _none_left_behind(self) -> Iterator[None]:
        """However the block ends, no process of ours outlives it."""
        try:
            yield
        finally:
            for group in self._groups:
                group.kill()
            self._groups.clear()
