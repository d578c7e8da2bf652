"""Scratch directories under the names that earlier versions gave them, left by killed processes.

Those names (``wuneng-eval-`` and eight characters) somebody could have chosen for something else.
So one is removed only if it is this user's alone, a day old, not in use, and holds nothing but what
such a directory held.

The standard library alone is imported here: an exported model's code takes this file along.
"""

from __future__ import annotations

import os
import re
import stat
import time
from contextlib import suppress
from pathlib import Path

from wuneng.records.leftovers import ABANDONED_AFTER_SECONDS, lock, remove

__all__ = ["remove_old_scratch"]

_IN_USE = ".in-use"
_KERNELS = re.compile(r"variant\d+\..+|state_head_\d+_[0-9a-f]+\..+|.+\.(so|o|sha256)")
#: Today's prefix to what was in such directories.
_CONTENTS = {
    ".wuneng-eval-": re.compile(r".+\.(parquet|yaml)|hf"),
    ".wuneng-export-": re.compile(r"(inputs|answers)\.safetensors|exported|modules"),
    ".wuneng-kernels-": _KERNELS,
    ".build-": _KERNELS,
}


def remove_old_scratch(prefix: str, place: Path) -> None:
    """Remove what earlier versions left in ``place`` of the directories now called ``prefix``.

    Nothing is raised: a leftover that cannot be removed is in nobody's way.
    """
    contents = _CONTENTS.get(prefix)
    if contents is None:
        return
    name = re.compile(rf"{re.escape(prefix.removeprefix('.'))}[a-z0-9_]{{8}}")
    with suppress(OSError):
        for entry in os.scandir(place):
            if name.fullmatch(entry.name) and _is_left_over(Path(entry.path), contents):
                remove(Path(entry.path))


def _is_left_over(path: Path, contents: re.Pattern[str]) -> bool:
    with suppress(OSError):
        status = path.lstat()
        own = getattr(os, "geteuid", lambda: status.st_uid)()
        private = stat.S_ISDIR(status.st_mode) and not stat.S_IMODE(status.st_mode) & 0o077
        old = time.time() - status.st_mtime > ABANDONED_AFTER_SECONDS
        if private and old and status.st_uid == own:
            names = set(os.listdir(path)) - {_IN_USE}
            return all(map(contents.fullmatch, names)) and not _in_use(path / _IN_USE)
    return False


def _in_use(file: Path) -> bool:
    """Whether a process of an earlier version, which locked this file, still runs."""
    try:
        descriptor = os.open(file, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        return False
    try:
        return lock(descriptor) is False
    finally:
        os.close(descriptor)
