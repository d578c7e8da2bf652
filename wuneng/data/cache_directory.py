"""Cache entries: directories that appear whole or not at all, and are checked when they are read.

An entry is written under a temporary name beside its place, flushed to disk and renamed. Its
``manifest.json`` holds the size and SHA-256 of every file; an entry that no longer agrees (cut
short by a full disk, altered) counts as absent and is written again. Two processes may write the
same entry at once: the first to finish wins, the other finds the same content there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from wuneng.errors import DiskError

__all__ = ["cache_root", "is_intact", "publish"]

_log = logging.getLogger(__name__)
_MANIFEST = "manifest.json"
_UNFINISHED = ".unfinished-"
_ABANDONED_AFTER_SECONDS = 24 * 3600


def cache_root(setting: str | None) -> Path:
    """The recipe's ``data.cache_dir``, else ``$WUNENG_CACHE``, else ``.wuneng-cache`` here."""
    chosen = setting or os.environ.get("WUNENG_CACHE") or ".wuneng-cache"
    return Path(chosen).expanduser().absolute()


def is_intact(entry: Path) -> bool:
    """Whether ``entry`` is complete: every file of its manifest has that size and checksum."""
    try:
        manifest = json.loads((entry / _MANIFEST).read_text("utf-8"))
        intact = all(_description(entry / name) == written for name, written in manifest.items())
    except (OSError, ValueError, AttributeError):
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
        _remove_abandoned(entry.parent)
        temporary = _new_directory(entry.parent)
    except OSError as error:
        raise _disk_error(entry, error) from error
    try:
        fill(temporary)
        _seal(temporary)
        _put_in_place(temporary, entry)
    except OSError as error:
        raise _disk_error(entry, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _seal(directory: Path) -> None:
    files = sorted(path for path in directory.iterdir())
    manifest = {path.name: _description(path) for path in files}
    (directory / _MANIFEST).write_text(json.dumps(manifest, indent=1), "utf-8")
    for path in (*files, directory / _MANIFEST, directory):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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
        damaged = _new_directory(entry.parent)
        try:
            entry.rename(damaged / "damaged")
        except FileNotFoundError:
            pass  # another process moved it first
        finally:
            shutil.rmtree(damaged, ignore_errors=True)
    raise OSError(f"{entry} is replaced again and again by others")


def _new_directory(parent: Path) -> Path:
    directory = parent / f"{_UNFINISHED}{uuid.uuid4().hex}"
    directory.mkdir()  # readable to others as the umask says, unlike tempfile's
    return directory


def _remove_abandoned(parent: Path) -> None:
    """Remove what killed processes left behind."""
    for left in parent.glob(f"{_UNFINISHED}*"):
        try:
            if time.time() - left.stat().st_mtime > _ABANDONED_AFTER_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        except FileNotFoundError:
            continue


def _description(path: Path) -> dict[str, object]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _disk_error(entry: Path, error: OSError) -> DiskError:
    return DiskError(
        f"the cache entry {entry} cannot be written: {error.strerror or error}; free some space, "
        "or choose another place with data.cache_dir or WUNENG_CACHE"
    )
