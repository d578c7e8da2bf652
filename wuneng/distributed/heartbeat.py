"""Which process is missing when the others wait in vain.

A collective operation that fails says that some connection broke or that time is up, not whose
fault it was: its neighbours in a ring see one that has died, those further on see its neighbours
leave. So a thread of every process says once a second in the store that the process is alive. A
process that is killed or stopped says nothing any more. Those that wait in vain say so as well; one
that hangs, or is in an endless loop, is alive and does not.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from typing import Any

__all__ = ["Heartbeat"]

_SECONDS = 1.0
_BEATS_OF_SILENCE = 4


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
            return {0: "or the launcher, which keeps the store of all, is gone"}

    def _missing(self) -> dict[int, str]:
        left = {rank: self._text(f"left/{rank}") for rank in range(self._size)}
        found = {rank: f"stopped: {why}" for rank, why in left.items() if why}
        if found:
            return found
        self._asking.set(f"waits/{self._rank}", "1")
        others = [rank for rank in range(self._size) if rank != self._rank]
        before = {rank: self._read(rank) for rank in others}
        time.sleep(_BEATS_OF_SILENCE * self._seconds)
        silent = [rank for rank in others if self._read(rank) == before[rank]]
        if silent:
            what = "was killed or does not run any more"
        else:
            silent = [rank for rank in others if not self._text(f"waits/{rank}")]
            what = "is alive, but does not come to where the others wait"
        return {rank: f"{what}{self._named(rank)}" for rank in silent}

    def is_silent(self, rank: int, beats: int) -> tuple[bool, int]:
        """Whether ``rank`` has not beaten since its beat number ``beats``, and its newest."""
        number = self._read(rank)
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
        self._store.set(f"beat/{self._rank}", str(self._number))

    def _read(self, rank: int) -> int:
        return int(self._text(f"beat/{rank}") or -1)

    def _text(self, key: str) -> str:
        if not self._asking.check([key]):
            return ""
        value: bytes = self._asking.get(key)
        return value.decode()
