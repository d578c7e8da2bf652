"""Reading a file that others named or put there: a pipe or a device is refused, not waited for."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

__all__ = ["open_regular", "read_regular", "read_regular_text"]


def open_regular(path: Path) -> BufferedReader:
    """The file, opened for reading.

    Raises:
        OSError: it cannot be opened, or is something else than a regular file: opening a pipe
            would wait for somebody to write into it, and a device may never end.
    """
    # Without waiting even where a pipe takes the file's place between a look and the opening.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "expected a regular file, not a pipe or a device", str(path))
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path) -> bytes:
    """The file's bytes. OSError as ``open_regular``."""
    with open_regular(path) as file:
        return file.read()


def read_regular_text(path: Path) -> str:
    """The file's text, which is UTF-8. OSError as ``open_regular``; UnicodeDecodeError."""
    return read_regular(path).decode("utf-8")
