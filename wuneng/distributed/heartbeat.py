"""Which process is missing when the others wait in vain.

A collective operation that fails says that some connection broke or that time is up, not whose
fault it was: its neighbours in a ring see one that has died, those further on see its neighbours
leave. So a thread of every process says once a second in the store that the process is alive, and
how many collectives its main thread has come to. A process that is killed or stopped says nothing
any more; one that hangs, or is in an endless loop, came to fewer collectives than the others.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

__all__ = ["Heartbeat"]

_SECONDS = 1.0
_SILENT_AFTER = 4 * _SECONDS


@dataclass(frozen=True)
class _Beat:
    number: int
    collectives: int


class Heartbeat:
    """Beats until :meth:`stop`.

    Args:
        store: of ``torch.distributed``, shared by all; this object uses a copy of its own.
        seconds: between two beats.
    """

    def __init__(self, store: Any, rank: int, size: int, seconds: float = _SECONDS) -> None:
        self._store, self._seconds = store.clone(), seconds
        self._asking = store.clone()
        self._rank, self._size = rank, size
        self.collectives = 0
        """That the main thread has come to."""
        self._number = 0
        self._stopped = threading.Event()
        store.set(f"who/{rank}", f"{socket.gethostname()}, process {os.getpid()}")
        self._beat()
        self._thread = threading.Thread(target=self._beat_on, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No beats any more."""
        self._stopped.set()
        self._thread.join(10 * self._seconds)

    def farewell(self, reason: str) -> None:
        """Say why this process leaves before the others."""
        with suppress(Exception):  # whoever kept the store may be gone
            self._asking.set(f"left/{self._rank}", reason)

    def missing(self) -> dict[int, str]:
        """The processes that the others wait for, each with what is known of it.

        Takes some seconds. Empty: all are alive and equally far.
        """
        try:
            return self._missing()
        except Exception:  # the store is kept by the first process, or by torchrun beside it
            return {0: "the store that it kept cannot be reached any more"}

    def _missing(self) -> dict[int, str]:
        left = {rank: self._text(f"left/{rank}") for rank in range(self._size)}
        found = {rank: f"it stopped: {why}" for rank, why in left.items() if why}
        if found:
            return found
        first = {rank: self._read(rank) for rank in range(self._size)}
        time.sleep(_SILENT_AFTER * self._seconds / _SECONDS)
        last = {rank: self._read(rank) for rank in range(self._size)}
        for rank in range(self._size):
            before, now = first[rank], last[rank]
            if now is None:
                found[rank] = "it was never there"
            elif rank != self._rank and before == now:
                found[rank] = "it was killed or does not run any more"
        if found:
            return {rank: f"{what}{self._named(rank)}" for rank, what in found.items()}
        reached = {rank: beat.collectives for rank, beat in last.items() if beat is not None}
        most = max(reached.values())
        return {
            rank: f"it is alive, but does not come to where the others wait{self._named(rank)}"
            for rank, count in reached.items()
            if count < most
        }

    def is_silent(self, rank: int, beats: int) -> tuple[bool, int]:
        """Whether ``rank`` has not beaten since its beat number ``beats``, and its newest."""
        beat = self._read(rank)
        number = -1 if beat is None else beat.number
        return number == beats, number

    def _named(self, rank: int) -> str:
        who = self._text(f"who/{rank}")
        return f" ({who})" if who else ""

    def _beat_on(self) -> None:
        while not self._stopped.wait(self._seconds):
            try:
                self._beat()
            except Exception:  # the store is gone: so is who kept it, which the main thread notices
                return

    def _beat(self) -> None:
        self._number += 1
        self._store.set(f"beat/{self._rank}", f"{self._number} {self.collectives}")

    def _read(self, rank: int) -> _Beat | None:
        text = self._text(f"beat/{rank}")
        return _Beat(*map(int, text.split())) if text else None

    def _text(self, key: str) -> str:
        if not self._asking.check([key]):
            return ""
        value: bytes = self._asking.get(key)
        return value.decode()
