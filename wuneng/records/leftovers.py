"""What a killed process leaves half-written: told from what is being written, and removed.

Whoever writes a temporary file or directory holds a lock on it. The operating system drops the lock
with the process, however that ends, so what nobody holds was left behind. Where there are no such
locks (Windows, some network file systems), age decides.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = [
    "PARTIAL_DIRECTORY",
    "being_written",
    "is_abandoned",
    "is_leftover_name",
    "lock",
    "partial_file_pattern",
    "remove",
    "remove_abandoned",
    "temporary_directory",
]

#: How the name of a directory begins that is not complete, or not needed any more.
PARTIAL_DIRECTORY = ".partial-"
_ABANDONED_AFTER_SECONDS = 24 * 3600.0


def partial_file_pattern(name: str) -> re.Pattern[str]:
    """Names under which the file ``name`` is written before it is renamed."""
    return re.compile(rf"\.{re.escape(name)}\.[0-9a-f]+\.partial")


def is_leftover_name(name: str) -> bool:
    """Whether a name is one that only half-written files and directories of ours have."""
    return bool(
        name.startswith(PARTIAL_DIRECTORY) or re.fullmatch(r"\..+\.[0-9a-f]+\.partial", name)
    )


def lock(descriptor: int) -> bool | None:
    """Lock an open file or directory until it is closed; None where there are no such locks."""
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextmanager
def being_written(directory: Path) -> Iterator[None]:
    """Hold the lock of a temporary directory while the block runs, even after a rename."""
    descriptor = _opened(directory)
    try:
        if descriptor is not None:
            lock(descriptor)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def temporary_directory(parent: Path, prefix: str) -> Iterator[Path]:
    """A new directory ``<prefix><hex>``, locked while the block runs, and removed after it.

    Raises:
        OSError: it cannot be made.
    """
    while True:
        path = parent / f"{prefix}{secrets.token_hex(16)}"
        path.mkdir()  # readable to others as the umask says, unlike tempfile's
        descriptor = _opened(path)
        # Between mkdir and the lock it looked abandoned, and may have been removed as such.
        if descriptor is None or lock(descriptor) is False or not path.exists():
            if descriptor is not None:
                os.close(descriptor)
            continue
        break
    try:
        yield path
    finally:
        remove(path)
        os.close(descriptor)


def is_abandoned(path: Path) -> bool:
    """Whether nobody writes the temporary file or directory any more."""
    if path.is_symlink():
        return True
    descriptor = _opened(path)
    if descriptor is None:
        return _is_old(path)
    try:
        taken = lock(descriptor)
    finally:
        os.close(descriptor)
    return _is_old(path) if taken is None else taken


def remove(path: Path) -> None:
    """Delete a file, a link (never what it points to) or a whole directory; nothing is raised."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def remove_abandoned(parent: Path, pattern: re.Pattern[str] | None = None) -> list[str]:
    """Delete what killed processes left in ``parent``; the names, for a message.

    Args:
        pattern: of the names to look at; by default all that only leftovers of ours have.
    """
    removed = []
    with suppress(OSError):
        for path in sorted(parent.iterdir()):
            name = path.name
            ours = is_leftover_name(name) if pattern is None else pattern.fullmatch(name)
            if ours and is_abandoned(path):
                remove(path)
                removed.append(name)
    return removed


def _opened(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return None


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.lstat().st_mtime > _ABANDONED_AFTER_SECONDS
    except FileNotFoundError:
        return False
