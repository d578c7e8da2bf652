"""Working directories that are removed again: by their owner, or, where it was killed, by the next.

The standard library alone is imported here: an exported model's code takes this file along.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wuneng.records.leftovers import remove_if_abandoned, temporary_directory
from wuneng.records.old_scratch import remove_old_scratch

__all__ = ["remove_unused", "scratch_directory"]


@contextmanager
def scratch_directory(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """A new directory ``<prefix><32 hex digits>`` for this user alone, removed afterwards.

    What killed processes have left under the same prefix is removed first.

    Args:
        prefix: how the names of such directories begin; a dot and what they are for.
        parent: where it is made; None takes the system's place for temporary files.

    Raises:
        OSError: it cannot be made there.
    """
    place = Path(tempfile.gettempdir()) if parent is None else parent
    remove_unused(prefix, place)
    with temporary_directory(place, prefix, mode=0o700) as path:
        yield path


def remove_unused(prefix: str, place: Path) -> None:
    """Remove this user's scratch directories in ``place`` whose process has ended.

    They alone have such names: a user's own ``<prefix>v1`` is not touched. Those of earlier
    versions go with them. Nothing is raised: a
    leftover that cannot be removed is in nobody's way.
    """
    remove_old_scratch(prefix, place)
    name = re.compile(rf"{re.escape(prefix)}[0-9a-f]{{32}}")
    with suppress(OSError):
        for entry in os.scandir(place):
            with suppress(OSError):
                if name.fullmatch(entry.name) and _is_own_directory(Path(entry.path)):
                    remove_if_abandoned(Path(entry.path))


def _is_own_directory(path: Path) -> bool:
    status = path.lstat()
    own = getattr(os, "geteuid", lambda: status.st_uid)()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == own
