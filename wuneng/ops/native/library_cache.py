"""Where built kernels are kept, and when a kept one may be loaded.

Loading a library runs its code. So one is loaded only from a directory that nobody else can write
to, only when it is this user's file, and only when its bytes have the checksum that was written
beside it; in any doubt it is built anew.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from wuneng.records.cache_place import cache_place
from wuneng.records.durable import flush

__all__ = ["is_intact", "keep", "own_directory"]


def own_directory() -> Path | None:
    """``$XDG_CACHE_HOME/wuneng`` (``~/.cache/wuneng``), this user's with mode 0700.

    None where there can be no such directory: it is another user's, somebody else could put
    another in its place, or it cannot be made.
    """
    path = cache_place()
    if path is None:  # nobody's home is known
        return None
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = path.resolve(strict=True)
        if not _is_own(path.stat()) or any(_others_may_rename(p.stat()) for p in path.parents):
            return None
        if stat.S_IMODE(path.stat().st_mode) != 0o700:
            path.chmod(0o700)  # of an earlier version, made with the usual mode
    except OSError:
        return None
    return path


def is_intact(library: Path) -> bool:
    """Whether ``library`` is this user's own file and has the bytes that were built."""
    try:
        status = library.lstat()
        if not stat.S_ISREG(status.st_mode) or not _is_own(status) or status.st_mode & 0o022:
            return False
        expected = _checksum_file(library).read_bytes().strip()
        return hashlib.sha256(library.read_bytes()).hexdigest().encode() == expected
    except OSError:
        return False


def keep(built: Path, library: Path) -> None:
    """Move ``built`` to ``library``, on the disk before it has that name, and note its checksum.

    Two processes may do so at once: what they leave is whole, or is built again by the next.

    Raises:
        OSError: the disk is full or refuses.
    """
    built.chmod(0o700)
    digest = hashlib.sha256(built.read_bytes()).hexdigest()
    checksum = built.with_suffix(".sha256")
    checksum.write_text(f"{digest}\n", encoding="ascii")
    for source, target in ((built, library), (checksum, _checksum_file(library))):
        flush(source)
        os.replace(source, target)
    flush(library.parent)


def _checksum_file(library: Path) -> Path:
    return library.with_name(f"{library.name}.sha256")


def _is_own(status: os.stat_result) -> bool:
    return not hasattr(os, "geteuid") or status.st_uid == os.geteuid()


def _others_may_rename(status: os.stat_result) -> bool:
    """Whether other users may replace what lies in this directory."""
    if os.name != "posix":
        return False
    if status.st_uid not in (0, os.geteuid()):  # an owner may rename even where it is sticky
        return True
    if status.st_mode & stat.S_ISVTX:
        return False
    return bool(
        status.st_mode & 0o002 or (status.st_mode & 0o020 and not _is_private_group(status.st_gid))
    )


def _is_private_group(number: int) -> bool:
    """Whether the group is this user's, or root's, alone: named as the user, without others."""
    import grp
    import pwd

    try:
        group = grp.getgrgid(number)
        names = {pwd.getpwuid(user).pw_name for user in (os.geteuid(), 0)}
    except KeyError:
        return False
    return group.gr_name in names and set(group.gr_mem) <= names
