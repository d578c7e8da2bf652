"""Checksums of finished directories: what was written is what is read.

    {"schema": 1, "files": {"<path below the directory>": {"sha256": "...", "bytes": 123}, ...}}

A directory without such a file (of an earlier version, or of somebody else's making) is read as it
is. Files that are not listed are of no concern: something may be put beside what we wrote.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from wuneng.errors import DamagedError
from wuneng.foreign.regular import open_regular, read_regular_text
from wuneng.records.files import json_text, read_json, write_text_atomic

__all__ = [
    "CHECKSUMS",
    "digest",
    "fault",
    "read_checksums",
    "read_self_sealed",
    "rewrite_sealed",
    "seal",
    "seal_directory",
    "verify",
    "write_sealed_json",
    "write_self_sealed",
]

#: The file that holds the checksums of an export, an arm or a run.
CHECKSUMS = "checksums.json"


def digest(file: Path) -> dict[str, Any]:
    """``{"sha256", "bytes"}`` of a file. OSError when it cannot be read."""
    with open_regular(file) as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        return {"sha256": sha256, "bytes": stream.tell()}


def seal(
    directory: Path,
    names: Iterable[str],
    *,
    coming: Mapping[str, str] | None = None,
    known: Mapping[str, dict[str, Any]] | None = None,
    manifest: str = CHECKSUMS,
) -> None:
    """Write the checksums of the files ``names`` in ``directory``.

    Args:
        names: posix paths below the directory.
        coming: the text of files that are about to be written there. What marks a directory as
            finished comes after its checksums: a kill in between leaves it unfinished, never
            finished and unchecked.
        known: digests of files that need not be read again.

    Raises:
        DiskError: the disk is full or refuses.
    """
    known = known or {}
    files = {name: known.get(name) or digest(directory / name) for name in sorted(names)}
    for name, text in (coming or {}).items():
        data = text.encode("utf-8")
        files[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    write_text_atomic(directory / manifest, json_text({"schema": 1, "files": files}))


def seal_directory(
    directory: Path,
    manifest: str = CHECKSUMS,
    known: Mapping[str, dict[str, Any]] | None = None,
) -> None:
    """Write the checksums of every file below ``directory``, of which some may be ``known``.
    DiskError when the disk refuses."""
    files = (path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
    names = (path.relative_to(directory).as_posix() for path in files)
    others = [name for name in names if name != manifest]
    seal(directory, others, known=known, manifest=manifest)


def rewrite_sealed(directory: Path, name: str, text: str, manifest: str = CHECKSUMS) -> bool:
    """Give one file of a finished directory another text; whether that was done.

    Meanwhile the file is not listed, so that a kill at any point leaves a directory that is what
    its checksums say. A file that somebody has edited, or in a directory whose checksums somebody
    has deleted, is theirs.

    Raises:
        DamagedError: the file of checksums is itself damaged.
        DiskError: the disk is full or refuses.
    """
    path, data = directory / name, text.encode("utf-8")
    if not (directory / manifest).exists():
        return False
    files = read_checksums(directory, manifest)
    written = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    known = files.pop(name, None)
    if known == written or (known is not None and fault(path, known) is not None):
        return False
    if known is not None:
        seal(directory, files, known=files, manifest=manifest)
    write_text_atomic(path, text)
    seal(directory, [*files, name], known={**files, name: written}, manifest=manifest)
    return True


def write_sealed_json(
    path: Path, value: Any, beside: Iterable[str] = (), manifest: str = CHECKSUMS
) -> None:
    """Write ``value`` to ``path`` and, just before, checksums of it and of its neighbours.

    Args:
        beside: names in the same directory; those that do not exist are left out.

    Raises:
        DiskError: the disk is full or refuses.
    """
    text = json_text(value)
    present = [name for name in beside if (path.parent / name).is_file()]
    seal(path.parent, present, coming={path.name: text}, manifest=manifest)
    write_text_atomic(path, text)


def write_self_sealed(path: Path, value: Any) -> None:
    """Write ``value`` to ``x.json`` and, just before, its checksum to ``checksums.x.json``.

    For records that are put into a directory that is somebody else's: a run, or what ``--out``
    names. DiskError when the disk is full or refuses.
    """
    write_sealed_json(path, value, manifest=_own_manifest(path))


def read_self_sealed(path: Path, *, check: bool = True, skip: str = "--no-verify") -> Any:
    """What ``write_self_sealed`` wrote to ``path``; a file without a checksum is read as it is.

    Args:
        check: compare it with its checksum.
        skip: the option of the command that leaves this check out.

    Raises:
        DamagedError: it is not what was written.
        DataError: it is missing or not JSON.
    """
    if check and path.exists():
        verify(path.parent, [path.name], skip=skip, manifest=_own_manifest(path))
    return read_json(path)


def _own_manifest(path: Path) -> str:
    return f"checksums.{path.name}"


def verify(
    directory: Path,
    names: Collection[str] | None = None,
    *,
    advice: str = "",
    skip: str = "--no-verify",
    manifest: str = CHECKSUMS,
) -> bool:
    """Check the files of ``directory`` against its checksums; False when it has none.

    Args:
        names: check these alone, as far as they are listed; None checks all.
        advice: what to do about a damaged file, as a sentence; a general one follows.
        skip: the option of the command that leaves this check out.

    Raises:
        DamagedError: names the file that is missing, cut short, altered or unreadable.
    """
    if not (directory / manifest).exists():
        return False
    accept = (
        f"{advice and advice + ' '}If you changed it on purpose, delete {directory / manifest} to "
        f"accept what is there, or skip this check once with {skip}."
    )
    try:
        files = read_checksums(directory, manifest)
    except DamagedError as error:
        raise DamagedError(f"{error}. {accept}") from None
    for name, written in files.items():
        if names is None or name in names:
            found = fault(directory / name, written)
            if found is not None:
                raise DamagedError(f"{directory / name}: {found}. {accept}")
    return True


def fault(file: Path, written: Mapping[str, Any]) -> str | None:
    """What is wrong with ``file``, given its ``digest`` when it was written; None if nothing is."""
    try:
        size = file.stat().st_size
        if size != written["bytes"]:
            return f"{size:,} bytes, {written['bytes']:,} were written"
        if digest(file)["sha256"] != written["sha256"]:
            return "altered since it was written (sha256 differs)"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"unreadable ({error.strerror})"
    return None


def read_checksums(directory: Path, manifest: str = CHECKSUMS) -> dict[str, dict[str, Any]]:
    """The checksums by name. DamagedError when the file that holds them is itself damaged."""
    path = directory / manifest
    try:
        content = json.loads(read_regular_text(path))
        files = content["files"]
        if content["schema"] != 1 or not all(map(_sound, files.items())):
            raise ValueError
    except FileNotFoundError:
        raise DamagedError(f"{path}: missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DamagedError(f"{path}: damaged: it holds no checksums any more") from None
    return dict(files)


def _sound(item: tuple[str, Any]) -> bool:
    name, written = item
    path = PurePosixPath(name)
    inside = not path.is_absolute() and ".." not in path.parts and _can_be_a_name(name)
    return inside and isinstance(written["bytes"], int) and isinstance(written["sha256"], str)


def _can_be_a_name(name: str) -> bool:
    """Whether the operating system can be asked for it: a zero byte, or half a surrogate pair that
    stands for no byte, cannot."""
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False
