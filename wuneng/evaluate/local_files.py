"""Evaluation files on disk: which are recognised, which split they hold, and their rows.

A directory is scanned for ``.jsonl`` and ``.jsonl.gz`` files (itself and its direct
subdirectories). A file's first row says which data set it is (`local_formats`), its name which
split: a word "train", "test", "dev", "valid" or "validation".
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wuneng.data.lines import lines_of, open_bytes
from wuneng.errors import DataError, file_errors, reason
from wuneng.evaluate.local_formats import LocalFormat, Row, format_of_row

__all__ = ["LocalFile", "converted_rows", "first_row", "local_files", "scan", "split_of"]

# Words in a file's name, and the split they mean. MMLU's "dev" holds few-shot examples; elsewhere
# "dev" is another word for validation.
_SPLIT_WORDS = {
    "train": "train",
    "test": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "dev",
}


@dataclass(frozen=True)
class LocalFile:
    """A recognised file: its layout, and the split its name tells ("" when it tells none)."""

    path: Path
    format: LocalFormat
    split: str

    def describe(self) -> str:
        """Short text for messages."""
        return f"{self.path.name} ({self.format.name}, {self.split or 'no split in its name'})"


def scan(root: Path) -> tuple[list[LocalFile], list[Path]]:
    """The recognised files under a directory, and the others of the right kind.

    Raises:
        DataError: a file that cannot be read as JSON lines.
    """
    files: list[LocalFile] = []
    unrecognised: list[Path] = []
    for path in local_files(root):
        first = first_row(path)
        known = format_of_row(first) if first is not None else None
        if known is None:
            unrecognised.append(path)
        else:
            files.append(LocalFile(path, known, _split_of(path, known)))
    return files, unrecognised


def local_files(root: Path) -> list[Path]:
    """The JSON-lines files of a directory and its direct subdirectories, hidden ones left out."""
    found = [
        path
        for pattern in ("*.jsonl", "*.jsonl.gz", "*/*.jsonl", "*/*.jsonl.gz")
        for path in root.glob(pattern)
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(root).parts)
    ]
    return sorted(found)


def split_of(path: Path) -> str:
    """The split that a file's name tells, "" where it tells none."""
    words = re.split(r"[^a-z]+", path.name.split(".jsonl")[0].lower())
    return next((_SPLIT_WORDS[word] for word in reversed(words) if word in _SPLIT_WORDS), "")


def first_row(path: Path) -> Row | None:
    """The first object of a JSON-lines file, if it has any. DataError where it cannot be read."""
    return next((row for _, row in _rows_of(path)), None)


def _split_of(path: Path, known: LocalFormat) -> str:
    split = split_of(path)
    return "validation" if split == "dev" and known.name != "MMLU" else split


def _rows_of(path: Path) -> Iterator[tuple[int, Row]]:
    """Line numbers and objects of a JSON-lines file."""
    try:
        with open_bytes(path) as stream:
            for number, line in enumerate(lines_of(stream, path), start=1):
                if line.strip():
                    yield number, _parsed(line, path, number)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _parsed(line: bytes, path: Path, number: int) -> Row:
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}, line {number}: not JSON in UTF-8: {reason(error)}") from error
    if not isinstance(row, dict):
        raise DataError(f"{path}, line {number}: expected an object, not {type(row).__name__}")
    return row


def converted_rows(file: LocalFile) -> Iterator[tuple[Row, Row]]:
    """Each row as it stands, and in the stock layout. DataError with file and line."""
    labels = _labels_beside(file.path) if file.format.labels_beside else None
    count = 0
    for number, row in _rows_of(file.path):
        if labels is not None and count < len(labels):
            row.setdefault("label", labels[count])
        count += 1
        try:
            yield row, file.format.convert(row)
        except ValueError as error:
            raise DataError(f"{file.path}, line {number}: {reason(error)}") from error
    if labels is not None and len(labels) != count:
        raise DataError(f"{file.path}: {count} rows, but {len(labels)} labels in its -labels.lst")


def _labels_beside(path: Path) -> list[str] | None:
    labels = path.with_name(path.name.split(".jsonl")[0] + "-labels.lst")
    if not labels.is_file():
        return None
    with file_errors(f"{labels}: not a list of labels", DataError):
        return labels.read_text(encoding="utf-8").split()
