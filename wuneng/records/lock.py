"""Keeps two processes from training in one run directory.

The one way of locking is ``leftovers.lock``, the operating system's own lock on an open file or
directory; the package ``filelock`` cannot keep its promises. It locks files that it opens itself,
while what is being written is locked by the directory that is later renamed. It has no shared lock,
with which ``is_locked`` asks without keeping anybody out. Where a file system has no locks it falls
back on a marker that outlives a killed process. And modules that travel with an exported model may
import the standard library alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wuneng.errors import InputError, RunError
from wuneng.records.files import disk_errors, open_no_link
from wuneng.records.leftovers import lock

__all__ = ["LOCK", "InUse", "is_locked", "locked"]

LOCK = ".lock"
#: Seconds; ``is_locked`` holds a lock of its own for far less.
_WHILE_ASKED = 0.05


class InUse(RunError):
    """Another process trains in the directory."""


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold ``directory/.lock`` while the block runs.

    The operating system drops the lock when its process ends, however it ends. Where it offers no
    such locks (Windows), nothing is locked.

    Raises:
        InUse: another process holds it.
        InputError: something that is no file of ours is in the lock's place.
        DiskError: the lock file cannot be made.
    """
    path = directory / LOCK
    if path.is_symlink() or path.is_dir():
        kind = "a symbolic link" if path.is_symlink() else "a directory"
        raise InputError(f"{path} is {kind}, expected a file of our own; remove it")
    with disk_errors(path):
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = open_no_link(path, os.O_RDWR | os.O_CREAT)
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        if not _is_taken(descriptor):
            holder = file.read().decode("ascii", "replace").strip()
            raise InUse(
                f"another process (id {holder or 'unknown'}) is training in "
                f"{directory}. Wait for it, or choose another --out"
            )
        with disk_errors(path):
            file.truncate(0)
            file.write(str(os.getpid()).encode("ascii"))
        yield


def _is_taken(descriptor: int) -> bool:
    """Lock the file; false where another process trains. Who only asks has gone at once."""
    if lock(descriptor) is not False:
        return True
    time.sleep(_WHILE_ASKED)
    return lock(descriptor) is not False


def is_locked(directory: Path) -> bool:
    """Whether another process is training in ``directory`` at this moment."""
    try:
        descriptor = open_no_link(directory / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        return lock(descriptor, shared=True) is False
    finally:
        os.close(descriptor)
