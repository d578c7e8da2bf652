"""What happens to files: cut, emptied, one byte changed."""

from __future__ import annotations

import os
from pathlib import Path


def truncate(file: Path) -> None:
    """Keep the first half."""
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    """Keep nothing."""
    os.truncate(file, 0)


def alter(file: Path) -> None:
    """Change one byte in the middle and keep the size."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
