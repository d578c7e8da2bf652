"""Files with the same content kept once: hard links between sealed directories of one run."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from wuneng.errors import DamagedError
from wuneng.records.checksums import CHECKSUMS, fault, read_checksums
from wuneng.records.leftovers import partial_file_pattern, remove_abandoned

__all__ = ["share_files"]


def share_files(directory: Path, others: Iterable[Path], *, check: bool = True) -> int:
    """Replace files of ``directory`` by links to equal ones in ``others``; bytes saved.

    What is equal the checksums say; what the others hold is read and compared with them first.
    Nothing is raised: where there are no hard links, or no checksums, the copies stay.

    Args:
        check: whether they are read; otherwise only their sizes are compared.
    """
    saved = 0
    own = _checksums(directory)
    shared: set[str] = set()  # with the first that has it: a later one may be about to give its up
    for other in others:
        known = {
            written["sha256"]: (other / name, written)
            for name, written in _checksums(other).items()
        }
        for name, written in own.items():
            if written["sha256"] not in known or name in shared:
                continue
            source, expected = known[written["sha256"]]
            with suppress(OSError):
                if os.path.samefile(source, directory / name):
                    shared.add(name)
                    continue
                same_size = source.stat().st_size == expected["bytes"]
                if same_size and not (check and fault(source, expected)):
                    _replace_by_link(directory / name, source)
                    shared.add(name)
                    saved += expected["bytes"]
    return saved


def _checksums(directory: Path) -> dict[str, dict[str, Any]]:
    if not (directory / CHECKSUMS).is_file():
        return {}
    try:
        return read_checksums(directory)
    except DamagedError:
        return {}


def _replace_by_link(file: Path, source: Path) -> None:
    remove_abandoned(file.parent, partial_file_pattern(file.name))
    partial = file.with_name(f".{file.name}.{secrets.token_hex(8)}.partial")
    os.link(source, partial)
    partial.replace(file)
