"""What the first process finds, one thing after another, told to the others.

It goes through a connection of its own: a thread that makes batches may tell and wait while the
training loop does so too. What all have heard is deleted, so the store does not grow.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from wuneng.distributed.heartbeat import Heartbeat
from wuneng.distributed.save_group import packed, unpacked
from wuneng.errors import MissingProcess, RunError, WuNengError

__all__ = ["Telling", "wait_for_first"]

T = TypeVar("T")

#: Bytes of one value: torch's store takes 8 MiB at a time.
_PART = 1 << 22


class Telling:
    """Called in every process with the same acts in the same order.

    Args:
        store: a connection that no other thread waits on for long.
        name: of this sequence of acts; the same in all processes, and used once.
        missing: makes the error that names who is missing.
    """

    def __init__(
        self,
        store: Any,
        name: str,
        rank: int,
        size: int,
        heartbeat: Heartbeat,
        missing: Callable[[], MissingProcess],
    ) -> None:
        self._store, self._name = store, name
        self._rank, self._size = rank, size
        self._heartbeat, self._missing = heartbeat, missing
        self._told = 0

    def __call__(self, act: Callable[[], T]) -> T:
        """What ``act`` returns or raises in the first process, in all of them. It may take as long
        as it needs while that process is alive; what it returns is pickled.

        Raises:
            MissingProcess: the first process was killed or does not run any more.
        """
        self._told += 1
        key = f"{self._name}/{self._told}"
        if self._rank:
            return self._heard(key)
        try:
            result = act()
        except WuNengError as error:
            self._tell(key, (False, packed(error)))
            raise
        except BaseException as error:
            reason = f"the first process stopped: {type(error).__name__}: {error}"
            self._tell(key, (False, packed(RunError(reason))))
            raise
        self._tell(key, (True, result))
        return result

    def _tell(self, key: str, content: Any) -> None:
        whole = pickle.dumps(content)
        parts = range(0, len(whole), _PART)
        for number, start in enumerate(parts):
            self._store.set(f"{key}/{number}", whole[start : start + _PART])
        self._store.set(key, str(len(parts)))  # last: who sees it finds the parts

    def _heard(self, key: str) -> Any:
        wait_for_first(self._store, key, self._heartbeat, self._missing)
        parts = [f"{key}/{number}" for number in range(int(self._store.get(key)))]
        fine, result = pickle.loads(b"".join(self._store.get(part) for part in parts))
        if self._store.add(f"{key}/heard", 1) == self._size - 1:
            for own in (*parts, key, f"{key}/heard"):
                self._store.delete_key(own)
        if fine:
            return result
        raise unpacked(result)


def wait_for_first(
    store: Any, key: str, heartbeat: Heartbeat, missing: Callable[[], MissingProcess]
) -> None:
    """Until the first process has set ``key``; raises ``missing()`` where it is silent."""
    beats = -2
    while True:
        try:
            store.wait([key], timedelta(seconds=heartbeat.patience))
            return
        except RuntimeError:  # time is up, or the store is gone
            try:
                silent, beats = heartbeat.is_silent(0, beats)
            except RuntimeError:
                silent = True
            if silent:
                raise missing() from None
