"""Which unit to train next, among processes of several hosts that work on the same runs.

Units are claimed one at a time (``wuneng.records.claim``). One that another process trains is left
alone and looked at again: it may come to be finished, or to be taken over. So whoever works on a
run stays until all of it is done, and each of them can write the results.

``failed.json`` in a unit's directory says to the others that it was tried, and why it failed. What
was there before this process came does not count: then the same command tries once more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from wuneng.errors import DataError
from wuneng.records import ArmDirectory, read_json, write_json
from wuneng.records.claim import Claim, ClaimLost, Vacancy, Watch
from wuneng.records.claimant import Claimant
from wuneng.train.failures import Failure
from wuneng.train.signals import Interrupted, StopSignals

__all__ = ["Entry", "Offer", "UnitQueue", "note_failure"]

T = TypeVar("T")
_BETWEEN_LOOKS = 1.0
"""Seconds until a unit that another process has is looked at again; at most a beat."""
_WAITING = 0.1


@dataclass(frozen=True)
class Offer:
    """A unit that nobody had; whoever trains it, this process or one that it has started, claims
    it by this."""

    place: ArmDirectory
    vacancy: Vacancy
    failed_before: bytes | None = None
    """``failed.json`` that does not count."""

    def claim(self, claimant: Claimant) -> Claim:
        """ClaimLost where others have been faster, and may have finished it."""
        found = self.vacancy.claim(claimant)
        if found is None:
            raise ClaimLost(f"{self.place.path}: another process trains it")
        if self.place.result.exists() or _failed(self.place) not in (None, self.failed_before):
            found.release()
            raise ClaimLost(f"{self.place.path}: another process has trained it")
        return found


@dataclass(eq=False)
class Entry(Generic[T]):
    """A unit that is not finished."""

    label: str
    place: ArmDirectory
    job: T
    watch: Watch
    failed_before: bytes | None
    """``failed.json`` as it was when this process came."""
    offer: Offer = field(init=False)
    """Once ``next`` has given it."""
    look_again: float = 0.0
    told: str = ""


class UnitQueue(Generic[T]):
    """The units of one or several runs that are still to be trained, in their order.

    Args:
        units: what each is called, its directory, and whatever goes with it.
        note: told of units that others train, finish, or leave behind.
    """

    def __init__(
        self,
        units: Sequence[tuple[str, ArmDirectory, T]],
        claimant: Claimant,
        note: Callable[[str], None],
    ) -> None:
        self._note = note
        self._pause = min(_BETWEEN_LOOKS, claimant.beat)
        self._left = [
            Entry(label, place, job, Watch(place.path, claimant), _failed(place))
            for label, place, job in units
        ]
        self.total = len(self._left)
        self.done = 0
        """Finished, by whomever."""
        self.failures: list[Failure] = []

    def __bool__(self) -> bool:
        """Whether there are units that nobody of this queue's users has."""
        return bool(self._left)

    def next(self) -> Entry[T] | None:
        """The first that nobody has; None where there is none at this moment."""
        for entry in list(self._left):
            now = time.monotonic()
            if now < entry.look_again:
                continue
            entry.look_again = now + self._pause
            found = entry.watch.look()
            if not isinstance(found, Vacancy):
                self._tell(entry, f"{entry.label}: trained by {found}")
                continue
            self._left.remove(entry)
            if self._is_settled(entry):
                continue
            if found.found is not None:
                self._tell(entry, f"{entry.label}: taken over from {entry.watch.last_holder}")
            entry.offer = Offer(entry.place, found, entry.failed_before)
            return entry
        return None

    def wait(self) -> Entry[T] | None:
        """``next``, as soon as there is one; None once all are done. Interrupted by a signal."""
        with StopSignals(what="the run") as stop:
            while self._left:
                entry = self.next()
                if entry is not None:
                    return entry
                if stop.requested is not None:
                    why = "stopped by a signal; other processes train what is left"
                    raise Interrupted(why, stop.requested)
                time.sleep(min(_WAITING, self._pause))
        return None

    def finished(self) -> None:
        """One that ``next`` gave is."""
        self.done += 1

    def failed(self, failure: Failure) -> None:
        """One that ``next`` gave has."""
        self.failures.append(failure)

    def put_back(self, entry: Entry[T]) -> None:
        """Another process has it after all."""
        self._left.insert(0, entry)

    def _is_settled(self, entry: Entry[T]) -> bool:
        """Whether others have finished it, or tried."""
        if entry.place.result.exists():
            self._note(f"{entry.label}: finished by another process")
            self.finished()
            return True
        if _failed(entry.place) in (None, entry.failed_before):
            return False
        with suppress(DataError, KeyError, TypeError):
            told = read_json(entry.place.failed)
            self.failed(Failure(entry.label, str(told["reason"]), bool(told["diverged"])))
            self._note(f"{entry.label}: failed in another process: {told['reason']}")
            return True
        return False

    def _tell(self, entry: Entry[T], text: str) -> None:
        if text != entry.told:
            entry.told = text
            self._note(text)


def note_failure(place: ArmDirectory, failure: Failure) -> None:
    """Leave ``failed.json`` for the others. DiskError when the disk refuses."""
    write_json(
        place.failed,
        {"reason": failure.reason, "diverged": failure.diverged, "when": time.time()},
    )


def _failed(place: ArmDirectory) -> bytes | None:
    """The content of its ``failed.json``; None where there is none."""
    try:
        return place.failed.read_bytes()
    except OSError:
        return None
