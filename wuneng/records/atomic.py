"""Directories that appear complete or not at all, and disks that are full.

A directory is filled under a temporary name beside its final one, every file and the directory
itself are flushed to the disk, and one rename puts it in place. A killed process leaves at most a
directory whose name starts with ``.partial-``, which ``remove_leftovers`` deletes.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from wuneng.errors import DiskError, InputError
from wuneng.records.checksums import CHECKSUMS, seal_directory
from wuneng.records.durable import flush
from wuneng.records.fence import check_fence, fence_mark
from wuneng.records.files import FULL
from wuneng.records.leftovers import (
    PARTIAL_DIRECTORY,
    is_abandoned,
    new_directory,
    remove,
    remove_abandoned,
    remove_if_abandoned,
)

__all__ = [
    "check_free_space",
    "directory_written_atomically",
    "disk_error",
    "flush_tree",
    "remove_directory",
    "remove_leftovers",
]

_LEFTOVER = PARTIAL_DIRECTORY
_DISK_ERRNOS = {*FULL, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EIO, errno.ELOOP}


@contextmanager
def directory_written_atomically(
    final: Path,
    bytes_needed: int,
    *,
    checksums: str = CHECKSUMS,
    known: Mapping[str, dict[str, Any]] | None = None,
) -> Iterator[Path]:
    """A temporary directory to fill; it becomes ``final`` when the block ends without an error.

    An existing ``final`` is replaced only after the new one is complete. When anything fails the
    temporary directory is removed and ``final`` is as it was. Checksums of all files are put
    beside them, in the file ``checksums``.

    Args:
        known: digests of files that other processes put there; may be filled in the block.

    Raises:
        DiskError: the disk is full, over quota or read-only; names path, bytes needed and free.
        InputError: another process is writing ``final``.
    """
    mark = fence_mark()  # who had lost it writes on under a name of its own
    temporary = final.with_name(f"{_LEFTOVER}{final.name}{mark and '.'}{mark}")
    replaced = final.with_name(f"{_LEFTOVER}replaced-{final.name}")
    check_fence()
    _make_way(final, temporary, replaced)
    with _disk_errors_told(final, bytes_needed), ExitStack() as stack:
        final.parent.mkdir(parents=True, exist_ok=True)
        check_free_space(final, bytes_needed)
        try:  # until this has succeeded, what is there is another process's
            stack.enter_context(new_directory(temporary))
        except FileExistsError:
            raise _busy(final) from None
        try:
            yield temporary
            seal_directory(temporary, checksums, known)
            flush_tree(temporary)
            check_fence()
            if os.path.lexists(final):
                final.rename(replaced)
            temporary.rename(final)
            flush(final.parent)
        except BaseException:
            remove(temporary)
            if not os.path.lexists(final) and os.path.lexists(replaced):
                check_fence()
                replaced.rename(final)
            raise
        remove(replaced)


@contextmanager
def _disk_errors_told(final: Path, bytes_needed: int) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        full = disk_error(error, final, bytes_needed)
        if full is not None:
            raise full from error
        raise


def _busy(final: Path) -> InputError:
    return InputError(f"another process is writing {final}; wait for it")


def _make_way(final: Path, temporary: Path, replaced: Path) -> None:
    """Remove what a killed process left of writing ``final``; what it had moved aside returns."""
    for leftover in (temporary, replaced):
        if os.path.lexists(leftover) and not is_abandoned(leftover):
            raise _busy(final)
    if os.path.lexists(replaced) and not os.path.lexists(final):
        replaced.rename(final)
    if os.path.lexists(temporary) and not remove_if_abandoned(temporary):
        raise _busy(final)
    remove(replaced)


def check_free_space(path: Path, bytes_needed: int) -> None:
    """Raise DiskError before the first byte is written if ``bytes_needed`` cannot fit."""
    usage = shutil.disk_usage(path.parent)
    if usage.total and usage.free < bytes_needed:
        raise DiskError(_full_disk_message(path, bytes_needed))


def disk_error(error: BaseException, path: Path, bytes_needed: int) -> DiskError | None:
    """The DiskError that ``error`` amounts to, or None if it is something else.

    safetensors reports the operating system's error only in its text, hence the search in it.
    """
    if isinstance(error, DiskError):
        return None
    number = error.errno if isinstance(error, OSError) else None
    found = re.search(r"os error (\d+)", str(error))
    if number is None and found is not None and isinstance(error, Exception):
        number = int(found.group(1))
    if number not in _DISK_ERRNOS:
        return None
    if number in FULL:
        return DiskError(_full_disk_message(path, bytes_needed))
    return DiskError(f"cannot write {path}: {os.strerror(number or 0)}")


def remove_directory(path: Path) -> None:
    """Delete ``path`` so that a kill in between leaves a leftover, not half a directory."""
    check_fence()
    doomed = path.with_name(f"{_LEFTOVER}deleted-{path.name}")
    remove(doomed)
    path.rename(doomed)
    remove(doomed)


def remove_leftovers(parent: Path) -> list[str]:
    """Delete what killed writes left in ``parent``; returns the names, for a message.

    A directory that was moved aside while its successor was put in place goes back if the
    successor never arrived.
    """
    if not parent.is_dir():
        return []
    for leftover in sorted(parent.glob(f"{_LEFTOVER}replaced-*")):
        original = parent / leftover.name.removeprefix(f"{_LEFTOVER}replaced-")
        if not os.path.lexists(original):
            leftover.rename(original)
    return remove_abandoned(parent)


def _full_disk_message(path: Path, bytes_needed: int) -> str:
    free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
    return (
        f"cannot write {path}: the disk is full ({bytes_needed:,} bytes needed, {free:,} free). "
        "What was saved before is untouched; free some space and resume."
    )


def flush_tree(directory: Path) -> None:
    """Every file below ``directory``, and the directories themselves, onto the disk."""
    for root, _, files in os.walk(directory):
        for name in files:
            flush(Path(root) / name)
        flush(Path(root))
