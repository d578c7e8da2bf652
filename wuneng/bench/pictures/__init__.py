"""Pictures of a record, each as SVG and PNG.

ratio     speed as a multiple of attention's against length, a panel for each kind of case
time      milliseconds against length, likewise, log axes
memory    peak bytes against length, likewise
decode    milliseconds per token against context, a panel for each batch
roofline  FLOP/s reached against FLOPs per byte, under the machine's two roofs
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wuneng.bench.pictures.lengths import against_length, decoding
from wuneng.bench.pictures.ratio import ratio
from wuneng.bench.pictures.roofline import roofline
from wuneng.bench.record import Row, rows_of
from wuneng.pictures import write_figures

__all__ = ["draw"]


def draw(record: dict[str, Any], directory: Path) -> list[Path]:
    """Write the pictures that the record has figures for; returns the PNGs' paths.

    Pictures of an earlier record in the directory that this one has no figures for are removed.

    Raises:
        DiskError: the disk is full or refuses.
    """
    rows = [row for row in rows_of(record) if row.median_ms is not None]
    return write_figures(lambda: _figures(rows, record), directory)


def _figures(rows: list[Row], record: dict[str, Any]) -> dict[str, Any]:
    """A figure by the name of its file; None where there is nothing to draw."""
    return {
        "ratio": ratio(rows, record),
        "time": against_length(rows, "median_ms", "milliseconds", record),
        "memory": against_length(rows, "peak_bytes", "peak memory, MiB", record),
        "decode": decoding(rows),
        "roofline": roofline(rows, record),
    }
