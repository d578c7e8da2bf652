"""Cache entries: directories that appear whole or not at all, and are checked when they are read.

An entry is written under a temporary name beside its place, flushed to disk and renamed. Its
``manifest.json`` holds the size and SHA-256 of every file; an entry that no longer agrees (cut
short by a full disk, altered) counts as absent and is written again. Two processes may write the
same entry at once: the first to finish wins, the other finds the same content there. That they need
not is the work of ``making``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from wuneng.errors import DamagedError, DiskError
from wuneng.records.atomic import flush_tree
from wuneng.records.checksums import seal_directory, verify
from wuneng.records.files import disk_complaint
from wuneng.records.leftovers import remove_abandoned, temporary_directory
from wuneng.records.places import expanded
from wuneng.records.user_cache import UNFINISHED, named_cache, user_cache

__all__ = ["cache_root", "is_intact", "publish", "working_directories"]

_log = logging.getLogger(__name__)
_MANIFEST = "manifest.json"
#: Characters of an entry's name that begin those of the directories in which it is written.
_KNOWN_BY = 16
_LEFTOVER = re.compile(rf"{re.escape(UNFINISHED)}.+")


def cache_root(setting: str | None) -> Path:
    """The recipe's ``data.cache_dir``, else ``$WUNENG_CACHE``, else the user's cache directory.

    Raises:
        InputError: it begins with a ``~`` that stands for no home directory.
    """
    if setting:
        return expanded(setting, "data.cache_dir").absolute()
    return named_cache() or user_cache()


def is_intact(entry: Path) -> bool:
    """Whether ``entry`` is complete: every file of its manifest has that size and checksum."""
    try:
        intact = verify(entry, manifest=_MANIFEST)
    except DamagedError:
        intact = False
    if not intact and entry.exists():
        _log.warning("cache entry %s is damaged and is made again", entry)
    return intact


def publish(entry: Path, fill: Callable[[Path], None]) -> None:
    """Make ``entry`` hold what ``fill`` writes into the empty directory that it is given.

    Raises DiskError when the disk refuses; whatever ``fill`` raises otherwise leaves no trace.
    """
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(entry.parent, _LEFTOVER)
        with temporary_directory(entry.parent, _prefix(entry)) as temporary:
            fill(temporary)
            seal_directory(temporary, _MANIFEST)
            flush_tree(temporary)
            _put_in_place(temporary, entry)
    except OSError as error:
        raise _disk_error(entry, error) from error


def working_directories(entry: Path) -> list[Path]:
    """Those in which processes write ``entry`` at this moment, or did when they were killed."""
    try:
        return [path for path in entry.parent.iterdir() if path.name.startswith(_prefix(entry))]
    except OSError:
        return []


def _prefix(entry: Path) -> str:
    return f"{UNFINISHED}{entry.name[:_KNOWN_BY]}-"


def _put_in_place(temporary: Path, entry: Path) -> None:
    for _ in range(10):
        try:
            temporary.rename(entry)
            return
        except OSError:
            if not entry.exists():
                raise
        if is_intact(entry):  # another process was faster
            return
        # Out of the way under a name of its own: whoever has it mapped keeps what is mapped.
        with (
            temporary_directory(entry.parent, UNFINISHED) as damaged,
            suppress(FileNotFoundError),  # another process moved it first
        ):
            entry.rename(damaged / "damaged")
    raise OSError(f"{entry} is replaced again and again by others")


def _disk_error(entry: Path, error: OSError) -> DiskError:
    return DiskError(
        f"the cache entry {entry} cannot be written: {disk_complaint(error)}; free some space, "
        "or choose another place with data.cache_dir or WUNENG_CACHE"
    )
