"""Rows and bench.json: one row for each case, whatever became of it."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from wuneng.bench.schema import SCHEMA_VERSION, problems
from wuneng.errors import DataError
from wuneng.records import read_self_sealed, write_self_sealed, write_text_atomic

__all__ = [
    "Row",
    "csv_text",
    "failures",
    "identity",
    "nothing_measured",
    "read_record",
    "rows_of",
    "write_record",
]

_IDENTITY = ("what", "operation", "arm", "seq_len", "batch", "dtype")


@dataclass
class Row:
    """One case. Times are per call; what was not measured is None."""

    what: str
    operation: str
    arm: str
    seq_len: int
    batch: int
    dtype: str
    status: str = "ok"
    """``ok``, ``out of memory``, ``gate failed``, ``missing`` (not installed), ``unsupported``
    (installed, and not for this device, type or shape), ``skipped`` or ``failed``."""
    note: str = ""
    median_ms: float | None = None
    spread_ms: float | None = None
    """Interquartile range of the samples."""
    samples: int = 0
    tokens_per_second: float | None = None
    speed_ratio: float | None = None
    """Speed over attention's (``speed_ratio_against``): the median of the rounds' own ratios, which
    a slow phase of the machine leaves alone."""
    speed_ratio_spread: float | None = None
    """Interquartile range of those ratios."""
    speed_ratio_against: str | None = None
    peak_bytes: int | None = None
    """What stays allocated for the case (weights, optimiser, cache) plus the call's own peak."""
    held_bytes: int | None = None
    rss_bytes: int | None = None
    """CPU: growth of the process's peak resident set during the first call."""
    needed_bytes: int | None = None
    """Where memory did not suffice: what was asked for or predicted."""
    cache_bytes: int | None = None
    """Measured: ``kv_bytes`` plus ``state_bytes``."""
    kv_bytes: int | None = None
    state_bytes: int | None = None
    cache_bytes_counted: int | None = None
    """The same from shapes alone."""
    flops: float | None = None
    bytes: float | None = None
    bound: str | None = None
    roofline_share: float | None = None
    """Seconds that the binding rate allows, over seconds taken."""
    mfu: float | None = None
    """FLOPs over seconds, over the machine's matmul rate."""
    cuda_graph: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """Ready for bench.json."""
        return asdict(self)


def identity(row: Row) -> tuple[Any, ...]:
    """What makes two rows of different runs the same case."""
    return tuple(getattr(row, name) for name in _IDENTITY)


def rows_of(record: dict[str, Any]) -> list[Row]:
    """The rows of a record; keys of later versions are passed over."""
    known = {f.name for f in fields(Row)}
    return [Row(**{k: v for k, v in row.items() if k in known}) for row in record["rows"]]


def write_record(directory: Path, record: dict[str, Any]) -> None:
    """Write bench.json, its checksum and bench.csv.

    Raises:
        DiskError: the disk is full or refuses.
    """
    write_text_atomic(directory / "bench.csv", csv_text(rows_of(record)))
    write_self_sealed(directory / "bench.json", record)


def failures(record: dict[str, Any]) -> list[str]:
    """One line for each case that failed or was wrong; running out of memory is a result."""
    return [
        f"{row.what} {row.operation}, {row.arm}, {row.seq_len} tokens, batch {row.batch}: "
        f"{row.status}: {row.note}"
        for row in rows_of(record)
        if row.status in ("failed", "gate failed")
    ]


def nothing_measured(record: dict[str, Any]) -> str | None:
    """A sentence where no case at all was measured, with the reasons; None where one was."""
    rows = rows_of(record)
    if record["parts"] or any(row.status == "ok" for row in rows):
        return None
    counts = Counter(row.status for row in rows)
    reasons = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    text = f"nothing was measured: {reasons or 'no case is left of what was asked for'}."
    if short := [row for row in rows if row.status == "out of memory"]:
        least = min(short, key=lambda row: row.seq_len * row.batch)
        text += (
            f" The smallest, {least.what} of {least.arm} at {least.seq_len} tokens, batch "
            f"{least.batch}: {least.note}. Shorter lengths (--seq-len), a smaller batch (--batch) "
            "or a smaller model may fit."
        )
    elif rows:
        text += f" {rows[0].arm}: {rows[0].note}."
    return text


def csv_text(rows: Sequence[Row]) -> str:
    """The rows as CSV with a header."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [f.name for f in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.to_json() for row in rows)
    return out.getvalue()


def read_record(path: Path, *, check: bool = True) -> dict[str, Any]:
    """A bench.json, or the one in a directory.

    Args:
        check: compare it with its checksum, where it has one (earlier versions wrote none).

    Raises:
        DamagedError: it is not what was written.
        DataError: missing, not JSON, or not a bench.json of a version that can be read.
    """
    file = path / "bench.json" if path.is_dir() else path
    record: dict[str, Any] = read_self_sealed(file, check=check)
    found = problems(record)
    if found:
        raise DataError(
            f"{file} is not a bench.json of version {SCHEMA_VERSION}: " + "; ".join(found[:3])
        )
    return record
