"""Lines of text files, packed or not, none of them longer than memory."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, cast

from wuneng.errors import DataError
from wuneng.foreign.regular import open_regular

__all__ = ["LONGEST_LINE", "lines_of", "open_bytes", "place_in_file"]

#: No document is longer. A packed file of 3 MB can unpack to a line of 3 GB.
LONGEST_LINE = 128 << 20


def open_bytes(path: Path) -> AbstractContextManager[IO[bytes]]:
    """The file's bytes, unpacked where its name ends in ``.gz``. OSError for a pipe, too."""
    file = open_regular(path)
    if path.name.lower().endswith(".gz"):
        file.close()
        return cast(IO[bytes], gzip.open(path, "rb"))
    return file


def lines_of(stream: IO[bytes], path: Path) -> Iterator[bytes]:
    """The lines with their ends. DataError for one above ``LONGEST_LINE``."""
    number = 0
    while line := stream.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise DataError(
                f"{path}, line {number}: longer than {LONGEST_LINE >> 20} MiB; expected one JSON "
                "object a line"
            )
        yield line


def place_in_file(stream: IO[bytes]) -> int:
    """Bytes of the file that were read for what ``stream`` gave, packed as they are there."""
    file: IO[bytes] = stream.fileobj if isinstance(stream, gzip.GzipFile) else stream
    return file.tell()
