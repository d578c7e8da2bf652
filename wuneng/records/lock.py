"""Keeps two processes from training in one run directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from wuneng.errors import RunError
from wuneng.records.files import disk_errors

__all__ = ["is_locked", "locked"]


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold ``directory/.lock`` while the block runs.

    The operating system drops the lock when its process ends, however it ends. Where it offers no
    such locks (Windows), nothing is locked.

    Raises:
        RunError: another process holds it.
        DiskError: the lock file cannot be made.
    """
    path = directory / ".lock"
    with disk_errors(path):
        directory.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    with file:
        if not _lock(file):
            file.seek(0)
            raise RunError(
                f"another process (id {file.read().strip() or 'unknown'}) is training in "
                f"{directory}. Wait for it, or choose another --out"
            )
        with disk_errors(path):
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        yield


def is_locked(directory: Path) -> bool:
    """Whether another process is training in ``directory`` at this moment."""
    try:
        with (directory / ".lock").open(encoding="utf-8") as file:
            return not _lock(file)
    except FileNotFoundError:
        return False


def _lock(file: IO[str]) -> bool:
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
