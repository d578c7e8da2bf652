"""Files that are whole or absent, and lines that are complete or passed over.

JSON files are written under another name, flushed to the disk and renamed; metrics are appended a
line at a time, so that a killed run leaves at most one torn last line.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from wuneng.errors import DataError, DiskError

__all__ = [
    "append_jsonl",
    "disk_errors",
    "finite",
    "json_text",
    "read_json",
    "read_jsonl",
    "truncate_jsonl_after",
    "write_json",
    "write_text_atomic",
]

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or refusing disk inside the block into a DiskError that names ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskError(
                f"cannot write {path}: the disk is full ({os.strerror(error.errno)}). What was "
                "saved before is intact; free some space and run the command again."
            ) from error
        if error.errno in _REFUSED:
            raise DiskError(f"cannot write {path}: {os.strerror(error.errno)}") from error
        raise


def write_text_atomic(path: Path, text: str) -> None:
    """Write a UTF-8 file that is never seen half-written. DiskError when the disk refuses.

    Missing parent directories are made. An existing file stays as it is until the rename.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise
        _flush_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; NaN and infinities become null.

    Raises:
        DiskError: the disk is full or refuses to be written.
    """
    write_text_atomic(path, json_text(value))


def json_text(value: Any) -> str:
    """What ``write_json`` writes of ``value``."""
    return json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """Parse a JSON file. DataError when it is missing or malformed."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
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
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+", buffering=0) as file:
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
        DataError: a complete line is not JSON.
    """
    if not path.exists():
        return []
    *lines, _torn = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError:  # JSONDecodeError and UnicodeDecodeError
            raise DataError(f"{path}, line {number}: not valid JSON: {line[:60]!r}") from None
    return rows


def truncate_jsonl_after(path: Path, step: int) -> None:
    """Drop, atomically, the rows whose ``step`` is above ``step``: a resumed run writes them anew.

    Rows without a step stay.
    """
    rows = read_jsonl(path)
    kept = [row for row in rows if row.get("step", step) <= step]
    if rows or path.exists():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        write_text_atomic(path, "".join(lines))


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


def _flush_directory(path: Path) -> None:
    """Make a rename in ``path`` durable, where the platform can open a directory."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
