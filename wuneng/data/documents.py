"""The documents of one file, streamed.

- ``.txt``, ``.md``, ``.py``: the file is one document, blank lines included. Line ends are kept as
  they are; only a byte order mark at the start is dropped.
- ``.jsonl``, ``.json`` (and ``.gz`` of both): one JSON object a line, its text field one document.
  Blank lines are skipped.
- ``.parquet``: one document a row, read in batches.

Documents without a single character are left out everywhere. Every complaint names the file and the
line (the row, for parquet).
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wuneng.data.files import file_kind
from wuneng.data.lines import lines_of, open_bytes, place_in_file
from wuneng.errors import DataError, file_errors, nearest, reason, shortened
from wuneng.foreign.regular import read_regular

__all__ = ["json_records", "read_documents", "readable", "text_of"]

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_ROWS_AT_ONCE = 256
_LINES_BETWEEN = 8


def read_documents(
    path: Path, text_field: str, told: Callable[[float], None] = lambda share: None
) -> Iterator[str]:
    """Yield the documents of ``path``, whose kind its suffix tells.

    ``told`` hears now and then which share of the file, 0 to 1, has been read.

    Raises DataError with file and line for text that is not UTF-8, broken JSON, a missing or
    non-string ``text_field``, a damaged archive and a file that cannot be read.
    """
    kind = file_kind(path)
    with readable(path):
        if kind == ".parquet":
            documents = _parquet_documents(path, text_field, told)
        elif kind in (".txt", ".md", ".py"):
            documents = _whole_file(path)
        else:
            documents = _json_documents(path, text_field, told)
        yield from (document for document in documents if document)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What goes wrong while a file is read, as DataError that names it."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged or cut gzip file ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def text_of(record: object, text_field: str, place: str) -> str:
    """The text of one record (a JSON object or a data set's row); ``place`` is for messages.

    Raises DataError when the field is missing (with the nearest name) or holds no string.
    """
    if not isinstance(record, dict):
        raise DataError(f"{place}: expected one JSON object a line, got {_described(record)}")
    if text_field not in record:
        fields = shortened(", ".join(map(repr, record)), 300) or "none"
        raise DataError(
            f"{place}: no field {text_field!r}; the fields are {fields}."
            f"{nearest(text_field, map(str, record))}"
        )
    text = record[text_field]
    if not isinstance(text, str):
        raise DataError(f"{place}: field {text_field!r} should be text, got {_described(text)}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place}: field {text_field!r} holds half a surrogate pair "
            f"({text[error.start]!r} at character {error.start}), which is no text"
        ) from None
    return text


def _whole_file(path: Path) -> Iterator[str]:
    content = read_regular(path)
    start = len(_BYTE_ORDER_MARK) if content.startswith(_BYTE_ORDER_MARK) else 0
    try:
        yield content[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        offset = start + error.start
        line = content.count(b"\n", 0, offset) + 1
        raise DataError(_not_utf8(path, line, offset, content[offset])) from None


def _json_documents(path: Path, text_field: str, told: Callable[[float], None]) -> Iterator[str]:
    return (text_of(record, text_field, place) for record, place in json_records(path, told))


def json_records(
    path: Path, told: Callable[[float], None] = lambda share: None
) -> Iterator[tuple[Any, str]]:
    """The JSON value of every line that is not blank, and its place for messages.

    ``told``: as ``read_documents``.

    Raises DataError with file and line for what is no JSON in UTF-8; file errors as they come.
    """
    size = max(1, path.stat().st_size)
    with open_bytes(path) as stream:
        offset = 0
        for number, line in enumerate(lines_of(stream, path), start=1):
            content = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
            if number % _LINES_BETWEEN == 0:
                told(min(1.0, place_in_file(stream) / size))
            if content.strip():
                record = _json_record(content, path, number, offset + len(line) - len(content))
                yield record, f"{path}, line {number}"
            offset += len(line)


def _json_record(line: bytes, path: Path, number: int, offset: int) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        at = error.start
        raise DataError(_not_utf8(path, number, offset + at, line[at])) from None
    except json.JSONDecodeError as error:
        what = f"{error.msg} at column {error.colno}"
        raise DataError(f"{path}, line {number}: not valid JSON: {what}") from None
    except (RecursionError, ValueError) as error:  # a number of 5,000 digits
        raise DataError(f"{path}, line {number}: not valid JSON: {reason(error)}") from None


def _parquet_documents(path: Path, text_field: str, told: Callable[[float], None]) -> Iterator[str]:
    import pyarrow.parquet as parquet

    # Arrow raises its own errors, and Python's over values that are not what their type says.
    with (
        file_errors(f"{path}: not a readable parquet file", DataError),
        parquet.ParquetFile(path) as file,
    ):
        columns = file.schema_arrow.names
        if text_field not in columns:
            text_of(dict.fromkeys(columns), text_field, str(path))  # raises
        batches = file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=[text_field])
        rows = max(1, file.metadata.num_rows)
        yield from _column_documents(batches, text_field, path, lambda row: told(row / rows))


def _column_documents(
    batches: Iterable[Any], text_field: str, path: Path, told: Callable[[int], None]
) -> Iterator[str]:
    row = 0
    for batch in batches:
        told(row)
        for value in batch.column(0):
            row += 1
            place = f"{path}, row {row}"
            try:
                text = value.as_py()
            except UnicodeDecodeError as error:
                raise DataError(f"{place}: expected UTF-8 text, got other bytes") from error
            yield text_of({text_field: text}, text_field, place)


def _not_utf8(path: Path, line: int, offset: int, byte: int) -> str:
    return f"{path}, line {line}: expected UTF-8 text, got byte 0x{byte:02x} at offset {offset}"


def _described(value: object) -> str:
    shown = repr(value)
    return f"{type(value).__name__} {shown if len(shown) <= 40 else shown[:37] + '...'}"
