"""What a killed process leaves half-written: told from what is being written, and removed.

Whoever writes a temporary file or directory holds a lock on it. The operating system drops the lock
with the process, however that ends, so what nobody holds was left behind. Where there are no such
locks (Windows, some network file systems), age decides.

The standard library alone is imported here: an exported model's code takes this file along.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

__all__ = [
    "ABANDONED_AFTER_SECONDS",
    "KERNEL_BUILD",
    "PARTIAL_DIRECTORY",
    "being_written",
    "is_abandoned",
    "is_leftover_name",
    "lock",
    "new_directory",
    "partial_file_pattern",
    "remove",
    "remove_abandoned",
    "remove_if_abandoned",
    "temporary_directory",
]

#: How the name of a directory begins that is not complete, or not needed any more.
PARTIAL_DIRECTORY = ".partial-"
#: How the name of a directory begins in which C kernels are compiled.
KERNEL_BUILD = ".build-"
#: Where there are no locks, what has not changed for so long is nobody's.
ABANDONED_AFTER_SECONDS = 24 * 3600.0


def partial_file_pattern(name: str) -> re.Pattern[str]:
    """Names under which the file ``name`` is written before it is renamed."""
    return re.compile(rf"\.{re.escape(name)}\.[0-9a-f]+\.partial")


def is_leftover_name(name: str) -> bool:
    """Whether a name is one that only half-written files and directories of ours have."""
    return bool(
        name.startswith(PARTIAL_DIRECTORY) or re.fullmatch(r"\..+\.[0-9a-f]+\.partial", name)
    )


def lock(descriptor: int, *, shared: bool = False) -> bool | None:
    """Lock an open file or directory until it is closed; None where there are no such locks.

    Args:
        shared: others may have such a lock, too: for asking whether there is an exclusive one.
    """
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
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
def new_directory(path: Path, mode: int = 0o777) -> Iterator[None]:
    """Make ``path`` and hold its lock while the block runs, even after a rename.

    Between the two it looks abandoned; whoever has the lock of what then stands there has it.

    Raises:
        FileExistsError: it exists, or another process took it before it was locked.
        OSError: it cannot be made.
    """
    path.mkdir(mode)
    descriptor = _opened(path)
    try:
        taken = path.exists() if descriptor is None else lock(descriptor)
        if taken is False or (descriptor is not None and not _is_at(descriptor, path)):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def temporary_directory(parent: Path, prefix: str, mode: int = 0o777) -> Iterator[Path]:
    """A new directory ``<prefix><32 hex digits>``, locked while the block runs, then removed.

    Args:
        mode: who may read it, as far as the umask allows.

    Raises:
        OSError: it cannot be made.
    """
    while True:
        path = parent / f"{prefix}{secrets.token_hex(16)}"
        with ExitStack() as stack:
            try:
                stack.enter_context(new_directory(path, mode))
            except FileExistsError:
                continue
            stack.callback(remove, path)
            yield path
            return


def is_abandoned(path: Path) -> bool:
    """Whether nobody writes the temporary file or directory any more."""
    with _claimed(path) as abandoned:
        return abandoned


def remove_if_abandoned(path: Path) -> bool:
    """Delete ``path`` unless it is being written, and whether that was so.

    Its lock is held meanwhile: nobody begins to write in what is about to go.
    """
    with _claimed(path) as abandoned:
        if abandoned:
            remove(path)
        return abandoned


@contextmanager
def _claimed(path: Path) -> Iterator[bool]:
    """Whether ``path`` is abandoned; its lock, where there is one, is held if it is."""
    if path.is_symlink():
        yield True
        return
    descriptor = _opened(path)
    try:
        taken = None if descriptor is None else lock(descriptor)
        if taken is None and descriptor is not None:  # Windows deletes no open file
            os.close(descriptor)
            descriptor = None
        yield _is_old(path) if taken is None else taken
    finally:
        if descriptor is not None:
            os.close(descriptor)


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
            if ours and remove_if_abandoned(path):
                removed.append(name)
    return removed


def _opened(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return None


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.lstat().st_mtime > ABANDONED_AFTER_SECONDS
    except FileNotFoundError:
        return False
