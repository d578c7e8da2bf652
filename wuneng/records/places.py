"""Places that a user names for results: found unusable before anything is computed."""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress
from pathlib import Path

from wuneng.errors import DiskError, InputError
from wuneng.records.files import FULL, disk_complaint, open_no_link
from wuneng.records.leftovers import partial_file_pattern, remove_abandoned

__all__ = ["expanded", "prove_writable", "refuse_links", "usable_directory"]


def usable_directory(path: Path, option: str) -> Path:
    """Make the directory ``path`` and its parents, and prove that files can be written there.

    Args:
        option: where the user can name another, as ``--out``.

    Raises:
        InputError: it is a file, lies under one, or cannot be made or written to.
        DiskError: the disk is full.
    """
    probe = path / f".probe.{secrets.token_hex(8)}.partial"
    try:
        path.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path, partial_file_pattern("probe"))
        os.close(open_no_link(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        probe.unlink(missing_ok=True)  # another process may have taken it for a leftover
    except OSError as error:
        if error.errno in FULL:
            raise DiskError(f"cannot write to {path}: {disk_complaint(error)}") from error
        raise InputError(
            f"{option} {path}: expected a directory to write to, {_reason(path, error)}. "
            f"Choose another place with {option}"
        ) from error
    return path


def prove_writable(path: Path, option: str) -> None:
    """Prove, as :func:`usable_directory` does, that ``path`` can hold files, and leave no trace.

    For commands that write once they have measured: killed before, they leave no empty directory.

    Raises:
        InputError, DiskError: as :func:`usable_directory`.
    """
    missing = [parent for parent in (path, *path.parents) if not os.path.lexists(parent)]
    try:
        usable_directory(path, option)
    finally:
        for made in missing:
            with suppress(OSError):  # not made, or another process writes in it
                made.rmdir()


def expanded(path: str, field: str) -> Path:
    """``path`` with ``~`` and ``~user`` filled in.

    Args:
        field: where the user wrote it: a recipe's field, a flag or a variable.

    Raises:
        InputError: no home directory of that user is known.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        user = path.partition("/")[0]
        raise InputError(
            f"{field}: expected a path, got {path!r}, and no home directory is known for {user}. "
            "Write the whole path"
        ) from None


def refuse_links(*paths: Path) -> None:
    """Nothing of ours is written through a symbolic link that somebody put into a run.

    Raises:
        InputError: one of the paths is a link.
    """
    for path in paths:
        if path.is_symlink():
            raise InputError(
                f"{path} is a symbolic link to {os.readlink(path)}: a run writes nothing through "
                "links. Remove it; to have a run elsewhere, name that place with --out"
            )


def _reason(path: Path, error: OSError) -> str:
    for parent in (path, *path.parents):
        try:
            if os.path.lexists(parent) and not parent.is_dir():
                broken = parent.is_symlink() and not parent.exists()
                subject = "it" if parent == path else str(parent)
                return f"{subject} is {'a broken link' if broken else 'a file'}"
        except OSError:
            continue
    if error.errno == errno.ENOENT:  # what /proc says
        return "the file system makes no files or directories there"
    return os.strerror(error.errno or 0)
