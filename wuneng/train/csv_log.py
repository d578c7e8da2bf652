"""metrics.jsonl as a table: ``metrics.csv``, a line for each logged step, for a spreadsheet.

It is made from metrics.jsonl when a run begins or goes on, so that a resumed run neither doubles
nor loses a line, and made anew where a figure comes that has no column yet.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wuneng.records import disk_errors, finite, write_text_atomic
from wuneng.records.fence import check_fence
from wuneng.records.files import open_no_link
from wuneng.train.flat_rows import flat

__all__ = ["CsvLogger"]


class CsvLogger:
    """``<arm>/metrics.csv``; a cell is empty where a step has no such figure, or no finite one."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "metrics.csv"
        self._rows: list[dict[str, Any]] = []
        self._columns: dict[str, None] = {}

    def begin(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Make the file of the rows that there are. DiskError when the disk refuses."""
        self._rows = [finite(flat(row)) for row in rows]
        self._columns = dict.fromkeys(name for row in self._rows for name in row)
        self._write()

    def log(self, row: Mapping[str, Any]) -> None:
        """Add a line. DiskError when the disk refuses."""
        flattened = finite(flat(row))
        self._rows.append(flattened)
        if not self._columns.keys() >= flattened.keys():
            self._columns |= dict.fromkeys(flattened)
            self._write()
            return
        line = _text([flattened], list(self._columns), header=False).encode("utf-8")
        check_fence()
        with disk_errors(self._file):
            descriptor = open_no_link(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            with os.fdopen(descriptor, "ab") as file:
                file.write(line)

    def close(self) -> None:
        """Every line is written already."""

    def _write(self) -> None:
        write_text_atomic(self._file, _text(self._rows, list(self._columns)))


def _text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, header: bool = True) -> str:
    found = io.StringIO()
    writer = csv.DictWriter(found, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return found.getvalue()
