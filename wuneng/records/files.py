"""Files that are whole or absent, and lines that are complete or passed over.

JSON files are written under another name, flushed to the disk and renamed; metrics are appended a
line at a time, so that a killed run leaves at most one torn last line.
"""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from wuneng.errors import DataError, DiskError
from wuneng.foreign.regular import read_regular, read_regular_text
from wuneng.records.durable import flush
from wuneng.records.fence import check_fence
from wuneng.records.leftovers import lock, partial_file_pattern, remove_abandoned

__all__ = [
    "FULL",
    "append_jsonl",
    "disk_complaint",
    "disk_errors",
    "finite",
    "json_text",
    "open_no_link",
    "read_json",
    "read_jsonl",
    "truncate_jsonl_after",
    "write_bytes_atomic",
    "write_json",
    "write_text_atomic",
]

_DEEPEST = 100
"""Levels of a JSON file of ours; none has ten."""
FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a disk that takes no more."""
_REFUSED = (
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO, errno.EBUSY),
    *(errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EOPNOTSUPP),
)
_ATTEMPTS = 3


def disk_complaint(error: OSError) -> str:
    """What the disk said, in words that name a full one as such."""
    said = error.strerror or str(error)
    return f"the disk is full ({said})" if error.errno in FULL else said


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or refusing disk inside the block into a DiskError that names ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise DiskError(
                f"cannot write {path}: {disk_complaint(error)}. What was "
                "saved before is intact; free some space and run the command again."
            ) from error
        if error.errno in _REFUSED:
            raise DiskError(f"cannot write {path}: {os.strerror(error.errno)}") from error
        raise


def write_text_atomic(path: Path, text: str) -> None:
    r"""Write a UTF-8 file, as ``write_bytes_atomic`` does. DiskError when the disk refuses.

    Half a surrogate pair, which a record of others may hold as JSON's escape, is written as one.
    """
    write_bytes_atomic(path, text.encode("utf-8", "backslashreplace"))


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write a file that is never seen half-written. DiskError when the disk refuses.

    Missing parent directories are made. An existing file stays as it is until the rename; a link
    in its place is replaced, never followed. What killed writes of it left is removed.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent, partial_file_pattern(path.name))
        for attempt in range(_ATTEMPTS):
            try:
                _write_and_rename(path, data)
                break
            except FileNotFoundError:  # removed by another process before it was locked
                if attempt == _ATTEMPTS - 1:
                    raise
        with suppress(OSError):  # not every platform opens a directory
            flush(path.parent)


def _write_and_rename(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        descriptor = open_no_link(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        with os.fdopen(descriptor, "wb") as file:
            lock(descriptor)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
            check_fence()
            partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def open_no_link(path: Path, flags: int) -> int:
    """``os.open`` that refuses a symbolic link: nothing of ours is written through one.

    Raises:
        OSError: ELOOP for a link, and whatever opening raises.
    """
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0), 0o666)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; NaN and infinities become null.

    Raises:
        DiskError: the disk is full or refuses to be written.
    """
    write_text_atomic(path, json_text(value))


def json_text(value: Any) -> str:
    """What ``write_json`` writes of ``value``."""
    text = json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    if not _is_utf8(text):  # half a surrogate pair, which only an escape can spell
        text = json.dumps(finite(value), indent=2, allow_nan=False)
    return text + "\n"


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def read_json(path: Path) -> Any:
    """Parse a JSON file. DataError when it is missing or malformed."""
    try:
        value = json.loads(read_regular_text(path))
        if _is_deep(value):
            raise ValueError(f"nested more than {_DEEPEST} deep")
        return value
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not valid JSON: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, byte {error.start}: not UTF-8 text") from None
    except (RecursionError, ValueError) as error:  # nested too deeply; a number of 5,000 digits
        raise DataError(f"{path}: not valid JSON: {error}") from None


def append_jsonl(path: Path, value: Any) -> None:
    """Append one object as one line. A torn last line, left by a killed process, is cut off first.

    Raises:
        DiskError: the disk is full or refuses; the file then ends as it did before.
    """
    line = json.dumps(finite(value), ensure_ascii=False, allow_nan=False) + "\n"
    check_fence()
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = open_no_link(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        with os.fdopen(descriptor, "ab+", buffering=0) as file:
            end = _end_of_last_line(file.fileno())
            if end != os.fstat(file.fileno()).st_size:
                file.truncate(end)
            data = line.encode("utf-8")
            try:
                # A disk that fills up part of the way writes a part of the line.
                while data:
                    data = data[file.write(data) or 0 :]
            except OSError:
                file.truncate(end)
                raise


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All objects of the file; a missing file has none.

    A last line without its newline is torn, and left out: a killed process wrote it.

    Raises:
        DataError: a complete line is not a JSON object.
    """
    rows = []
    for number, line, row in _lines(path):
        if row is None:
            raise DataError(f"{path}, line {number}: not a JSON object: {line[:60]!r}")
        rows.append(row)
    return rows


def truncate_jsonl_after(path: Path, step: int) -> list[int]:
    """Drop, atomically, the rows whose ``step`` is above ``step``: a resumed run writes them anew.

    Rows without a step stay. Lines that are damaged are dropped; their numbers are returned, for a
    message: what describes a run must not keep it from going on.
    """
    kept, damaged = [], []
    for number, _, row in _lines(path):
        if row is None or not isinstance(row.get("step", step), int):
            damaged.append(number)
        elif row.get("step", step) <= step:
            kept.append(row)
    if path.exists():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        write_text_atomic(path, "".join(lines))
    return damaged


def _lines(path: Path) -> Iterator[tuple[int, bytes, dict[str, Any] | None]]:
    """Number, bytes and object of every complete line; None for one that holds no object."""
    if not path.exists():
        return
    try:
        *lines, _torn = read_regular(path).split(b"\n")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # JSONDecodeError and UnicodeDecodeError, too
            row = None
        yield number, line, row if isinstance(row, dict) else None


def _end_of_last_line(descriptor: int) -> int:
    """Offset just after the last newline of an open file (0 when it has none)."""
    end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - 4096)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _is_deep(value: Any) -> bool:
    """Whether walking through the value could exhaust Python's stack."""
    level: list[Any] = [[value]]
    depth = 0
    while level and depth <= _DEEPEST:
        inside = (item.values() if isinstance(item, dict) else item for item in level)
        level = [item for inner in inside for item in inner if isinstance(item, dict | list)]
        depth += 1
    return bool(level)


def finite(value: Any) -> Any:
    """``value`` with every float that JSON cannot spell replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value
