"""A benchmark that is stopped keeps what it has measured: Ctrl-C, and SIGTERM as ``timeout`` sends.

Hours of a rented machine are not lost to the last case. Where nothing was measured yet, nothing is
kept.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from wuneng.bench.record import Row

__all__ = ["STOPPED", "sigterm_interrupts", "skipped", "was_stopped"]

#: In the row of every case whose turn did not come.
STOPPED = "the benchmark was stopped before it was measured"


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Within, SIGTERM raises KeyboardInterrupt, as Ctrl-C does; in the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def skipped(rows: Iterable[Row]) -> list[Row]:
    """The rows of cases that were not measured, empty and told as such."""
    return [
        Row(row.what, row.operation, row.arm, row.seq_len, row.batch, row.dtype, "skipped", STOPPED)
        for row in rows
    ]


def was_stopped(record: dict[str, Any]) -> bool:
    """Whether a record is one of a benchmark that did not come to its end."""
    return any(row.get("note") == STOPPED for row in record["rows"])
