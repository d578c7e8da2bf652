"""Working directories that are removed again: by their owner, or, where it was killed, by the next.

The standard library alone is imported here: an exported model's code takes this file along.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

__all__ = ["remove_leftovers", "scratch_directory"]

_LOCK = ".in-use"
#: Seconds after which a directory without a lock is nobody's: its maker had time to lock it.
_GRACE = 3600.0


@contextmanager
def scratch_directory(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """A new directory ``<prefix><random>``, readable by this user alone, removed afterwards.

    What killed processes have left under the same prefix is removed first.

    Args:
        prefix: how the names of such directories begin.
        parent: where it is made; None takes the system's place for temporary files.

    Raises:
        OSError: it cannot be made there.
    """
    place = Path(tempfile.gettempdir()) if parent is None else parent
    remove_leftovers(prefix, place)
    path = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
    try:
        with (path / _LOCK).open("w") as lock:
            _take(lock)
            yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def remove_leftovers(prefix: str, place: Path) -> None:
    """Remove directories ``<prefix>*`` of this user in ``place`` whose process has ended.

    Nothing is raised: a leftover that cannot be removed is in nobody's way.
    """
    with suppress(OSError):
        for entry in os.scandir(place):
            with suppress(OSError):
                if entry.name.startswith(prefix) and _is_left_over(Path(entry.path)):
                    shutil.rmtree(entry.path, ignore_errors=True)


def _is_left_over(path: Path) -> bool:
    status = path.lstat()
    own = getattr(os, "geteuid", lambda: status.st_uid)()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != own:
        return False
    try:
        descriptor = os.open(path / _LOCK, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        return time.time() - status.st_mtime > _GRACE
    with os.fdopen(descriptor, "r+") as lock:
        taken = _take(lock)
    return time.time() - status.st_mtime > _GRACE if taken is None else taken


def _take(lock: IO[str]) -> bool | None:
    """Lock the open file; None where the system, or the file system, knows no locks."""
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
