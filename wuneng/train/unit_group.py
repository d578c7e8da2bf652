"""The processes that train one unit for ``side_by_side``: one, or several together."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from wuneng.distributed.launched import Launched
from wuneng.distributed.member import Member
from wuneng.train.unit_process import Ended, UnitJob, work
from wuneng.train.unit_queue import Entry

__all__ = ["GroupProcess", "UnitGroup", "start_group"]


@dataclass
class GroupProcess:
    """One of them: the end of the pipe to it, and how it ended the unit."""

    process: BaseProcess
    pipe: Connection
    ended: Ended | None = None


@dataclass
class UnitGroup:
    """Those of one slot, and what they train at this moment."""

    slot: int
    members: list[GroupProcess]
    entry: Entry[UnitJob] | None = None
    """None while they wait for a unit."""
    units: int = field(default=0)
    """That they have been given."""

    def give(self, entry: Entry[UnitJob], device: str, port: int) -> None:
        """Let them train it; ``port`` is that of the store in which several of them meet."""
        self.entry = entry
        self.units += 1
        size = len(self.members)
        job = replace(entry.job, device=device, offer=entry.offer)
        for rank, one in enumerate(self.members):
            one.ended = None
            if size > 1:
                meeting = f"slot {self.slot}, {self.members[0].process.pid}, unit {self.units}"
                info = Launched(rank, size, self.slot * size + rank, size)
                job = replace(job, member=Member(port, meeting, info))
            with suppress(OSError):  # it has died: found out when it is listened to
                one.pipe.send(job)

    def stop(self) -> None:
        """Ask them to finish their step, save and leave."""
        for one in self.members:
            one.process.terminate()  # SIGTERM: see ``StopSignals``

    def died(self, one: GroupProcess, *, stopping: bool) -> None:
        """Note that one of them has ended, of whatever."""
        one.process.join()
        one.pipe.close()
        reason = _how_it_died(one.process.exitcode)
        if len(self.members) > 1:
            reason = f"process {self.members.index(one)} of {len(self.members)}: {reason}"
        one.ended = Ended(reason, stopped=stopping)

    def outcome(self) -> Ended | None:
        """How the unit ended, once all of them have said so: the first reason of one of them that
        did not only miss another."""
        ends = [one.ended for one in self.members if one.ended is not None]
        if len(ends) < len(self.members):
            return None
        failed = [ended for ended in ends if ended.reason]
        own = [ended for ended in failed if not ended.missing]
        return next(iter(own or failed), ends[0])

    @property
    def usable(self) -> bool:
        """Whether they can be given another unit."""
        alone = len(self.members) == 1
        return not any(
            one.pipe.closed or (one.ended is not None and one.ended.reason and not alone)
            for one in self.members
        )

    def kill(self) -> None:
        """End them at once."""
        for one in self.members:
            one.process.kill()
        for one in self.members:
            one.process.join()


def start_group(slot: int, size: int) -> UnitGroup:
    """``size`` new processes that wait for units."""
    context = multiprocessing.get_context("spawn")
    members = []
    for _ in range(size):
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs,))
        with _ctrl_c_held_back():
            process.start()
        theirs.close()
        members.append(GroupProcess(process, ours))
    return UnitGroup(slot, members)


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
