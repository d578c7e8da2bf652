"""What processes do that train together on text which is read while training."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.distributed.cases import run_text
from wuneng.data.encoding import Encoder
from wuneng.data.remote import RemoteFiles
from wuneng.data.streamed import Position
from wuneng.distributed.processes import Once, Processes, Together

Outcome = tuple[str, list[tuple[int, list[str]]]]


def counted(
    processes: Processes,
    recipe: Path,
    changes: tuple[str, ...] = (),
    stop: tuple[int, int] | None = None,
    *,
    killed_at: int = 0,
    each_by_itself: bool = False,
) -> tuple[Outcome, list[str], int]:
    """``run_text``, with the texts that this process has tokenised and how many it has read.

    Args:
        killed_at: the first process gets SIGKILL when it reads this document, from 1.
        each_by_itself: the plain way: every process reads and tokenises all of it.
    """
    texts: list[str] = []
    read = [0]
    encode, documents_from, telling = Encoder.encode, RemoteFiles.documents_from, Together.telling

    def encoding(self: Encoder, documents: Any) -> Any:
        texts.extend(documents)
        return encode(self, documents)

    def reading(self: RemoteFiles, position: Position) -> Iterator[tuple[str, Position]]:
        for found in documents_from(self, position):
            read[0] += 1
            if read[0] == killed_at and processes.is_first:
                os.kill(os.getpid(), signal.SIGKILL)
            yield found

    def in_this_process(self: Together) -> Once:
        return lambda act: act()

    Encoder.encode, RemoteFiles.documents_from = encoding, reading  # type: ignore[method-assign]
    if each_by_itself:
        Together.telling = in_this_process  # type: ignore[method-assign]
    try:
        return run_text(processes, recipe, changes, stop), texts, read[0]
    finally:
        Encoder.encode, RemoteFiles.documents_from = encode, documents_from  # type: ignore[method-assign]
        Together.telling = telling  # type: ignore[method-assign]


def plain(processes: Processes, recipe: Path) -> tuple[Outcome, list[str], int]:
    """``counted``, each by itself."""
    return counted(processes, recipe, each_by_itself=True)


def dying(processes: Processes, recipe: Path, document: int) -> None:
    """``counted``, and the first process is killed when it reads this document."""
    counted(processes, recipe, killed_at=document)
