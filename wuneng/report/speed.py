"""What `wuneng bench` left: time and memory against length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from wuneng.report.plots import Line, lines
from wuneng.report.records import Records
from wuneng.report.section import Picture, Section
from wuneng.report.setting import command_of

__all__ = ["speed"]

_KEYS = (
    *("what", "operation", "arm", "seq_len", "batch", "dtype", "status", "median_ms", "spread_ms"),
    *("tokens_per_second", "speed_ratio", "speed_ratio_against", "peak_bytes"),
)
_QUANTITIES = {"median_ms": ("milliseconds", 1.0), "peak_bytes": ("peak memory, MiB", 1 / 2**20)}


def speed(records: Records) -> Section | None:
    """Every case that was measured, and a panel for each kind of case and quantity."""
    found = [row for row in (records.bench or {}).get("rows", ()) if isinstance(row, Mapping)]
    rows = tuple({key: row.get(key) for key in _KEYS} for row in found)
    if not rows:
        return None
    text = (
        *map(str, (records.bench or {}).get("sentences") or ()),
        "Measured after its result was checked against the reference; pictures at the smallest "
        "batch. The benchmark's own pictures are in its directory.",
    )
    made_by = command_of(records.bench)
    return Section("speed", "Speed and memory", text, rows, tuple(_pictures(rows)), command=made_by)


def _pictures(rows: tuple[dict[str, Any], ...]) -> Iterator[Picture]:
    kinds = dict.fromkeys((row["what"], row["operation"]) for row in rows)
    for kind in kinds:
        own = [row for row in rows if (row["what"], row["operation"]) == kind]
        batch = min(row["batch"] for row in own)
        own = [row for row in own if row["batch"] == batch]
        title = ": ".join(str(word) for word in dict.fromkeys(kind) if word)
        for key, (unit, scale) in _QUANTITIES.items():
            known = [row for row in own if row[key]]
            if len({row["seq_len"] for row in known}) > 1:
                yield _against_length(f"{title}, batch {batch}", known, key, unit, scale)


def _against_length(
    title: str, rows: list[dict[str, Any]], key: str, unit: str, scale: float
) -> Picture:
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    series = []
    for arm in arms:
        own = sorted((r for r in rows if r["arm"] == arm), key=lambda row: row["seq_len"])
        series.append(Line(arm, [r["seq_len"] for r in own], [scale * r[key] for r in own]))
    told = "; ".join(f"{line.name} {line.y[-1]:.4g} at {line.x[-1]:,}" for line in series)
    return Picture(
        f"{title}: {unit}",
        f"{unit} of {title} against tokens: {told}",
        lambda axis: lines(axis, series, arms, x="tokens", y=unit, log_x=True, log_y=True),
    )
