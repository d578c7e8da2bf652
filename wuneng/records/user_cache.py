"""What this package keeps in the user's cache: where it is, what is in it, and how it is emptied.

    <root>/tokens/<key>/        tokenised text, memory-mapped by training
           tokenizers/<key>/    tokenizers learned from a recipe's text
           teachers/<key>/      what a teacher says of rows of tokens (teacher_top_k)
           claims/<key>/        which process makes one of these at this moment
           *.so, *.so.sha256    C kernels built for this machine (in the user's own cache only)

Everything in it is made again when it is needed. Nothing here imports torch.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from wuneng.errors import DiskError, InputError, nearest
from wuneng.records.cache_place import cache_place
from wuneng.records.claim import Vacancy, Watch
from wuneng.records.claimant import Claimant
from wuneng.records.files import disk_errors
from wuneng.records.leftovers import KERNEL_BUILD, is_abandoned, remove, temporary_directory
from wuneng.records.places import expanded

__all__ = [
    "KINDS",
    "OLD_CACHE",
    "UNFINISHED",
    "CacheEntry",
    "clear",
    "entries",
    "named_cache",
    "user_cache",
]

#: Where earlier versions kept tokens, in the working directory; not read any more.
OLD_CACHE = Path(".wuneng-cache")
#: How the name of an entry begins that is being written, or was when its process was killed.
UNFINISHED = ".unfinished-"
KINDS = ("tokens", "tokenizers", "teachers", "kernels", "leftovers")
#: Kinds whose entries are directories of files.
_MADE = ("tokens", "tokenizers", "teachers")
_ENTRY = re.compile(r"[0-9a-f]{40}")
_BUILD = re.compile(rf"{re.escape(KERNEL_BUILD)}[0-9a-f]{{32}}")
_KERNEL = re.compile(r"state_head_\d+_[0-9a-f]+\.so(\.sha256)?")


@dataclass(frozen=True)
class CacheEntry:
    """One thing in the cache.

    Attributes:
        kind: one of ``KINDS``.
        bytes: on the disk, all files together.
        modified: seconds since 1970.
    """

    kind: str
    path: Path
    bytes: int
    modified: float


def user_cache() -> Path:
    """``$XDG_CACHE_HOME/wuneng``, by default ``~/.cache/wuneng``; made by nobody here.

    Where no home is known, as in a container under a number without a name, it is a private
    directory among the temporary files, and made.

    Raises:
        InputError: somebody else has a directory in that last place.
    """
    return cache_place() or _without_a_home()


def named_cache() -> Path | None:
    """``$WUNENG_CACHE``, where tokens and tokenizers are kept instead; None where it is not set.

    Raises:
        InputError: it begins with a ``~`` that stands for no home directory.
    """
    named = os.environ.get("WUNENG_CACHE")
    return expanded(named, "WUNENG_CACHE").absolute() if named else None


def _without_a_home() -> Path:
    user = getattr(os, "geteuid", lambda: 0)()
    path = Path(tempfile.gettempdir()).absolute() / f"wuneng-cache-{user}"
    with disk_errors(path):
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        status = path.lstat()
    private = not hasattr(os, "geteuid") or (status.st_uid == user and not status.st_mode & 0o077)
    if not stat.S_ISDIR(status.st_mode) or not private:
        raise InputError(
            f"no home directory is known, and {path} is not this user's alone: "
            "name a place for the cache with WUNENG_CACHE or XDG_CACHE_HOME"
        )
    return path


def entries(root: Path) -> list[CacheEntry]:
    """What is ours below ``root``, by kind and newest first; files of others are passed over."""
    found = [_entry(kind, path) for kind, path in _ours(root)]
    return sorted(found, key=lambda entry: (KINDS.index(entry.kind), -entry.modified))


def clear(root: Path, kinds: Collection[str] = KINDS) -> list[CacheEntry]:
    """Delete the entries of these kinds; what was deleted.

    What another process is writing stays. A process that has tokens mapped keeps what it has
    mapped. Links are never followed, and what is not ours is left alone.

    Raises:
        InputError: an unknown kind.
        DiskError: an entry cannot be deleted.
    """
    for kind in kinds:
        if kind not in KINDS:
            known = ", ".join(KINDS)
            raise InputError(f"expected one of {known}, got {kind!r}.{nearest(kind, KINDS)}")
    gone = []
    for entry in entries(root):
        if entry.kind not in kinds:
            continue
        with disk_errors(entry.path):
            if entry.kind in _MADE:
                # Whole or not at all: a kill in between leaves a leftover, not half an entry.
                # Gone already where another process clears, too.
                with (
                    suppress(FileNotFoundError),
                    temporary_directory(entry.path.parent, UNFINISHED) as aside,
                ):
                    entry.path.rename(aside / "deleted")
            else:
                remove(entry.path)
            if os.path.lexists(entry.path):
                raise DiskError(f"cannot delete {entry.path}")
        gone.append(entry)
    for kind in (*_MADE, "claims"):
        with suppress(OSError):  # not empty, or not there
            (root / kind).rmdir()
    return gone


def _ours(root: Path) -> Iterator[tuple[str, Path]]:
    for kind in _MADE:
        for path in _listed(root / kind):
            if path.name.startswith(UNFINISHED):
                if is_abandoned(path):
                    yield "leftovers", path
            elif _ENTRY.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                yield kind, path
    for path in _listed(root / "claims"):
        if _ENTRY.fullmatch(path.name) and isinstance(Watch(path, Claimant()).look(), Vacancy):
            yield "leftovers", path  # of a process that was killed
    for path in _listed(root):
        if _BUILD.fullmatch(path.name):
            if path.is_dir() and is_abandoned(path):
                yield "leftovers", path
        elif _KERNEL.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            yield "kernels", path


def _listed(directory: Path) -> list[Path]:
    if directory.is_symlink():
        return []
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def _entry(kind: str, path: Path) -> CacheEntry:
    total = 0
    for file in (path, *path.rglob("*")):
        with suppress(OSError):  # another process deletes it at this moment
            total += file.lstat().st_size if not file.is_dir() else 0
    try:
        modified = path.lstat().st_mtime
    except OSError:
        modified = 0.0
    return CacheEntry(kind, path, total, modified)
