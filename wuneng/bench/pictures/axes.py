"""What a benchmark's pictures have in common: the cases they show, and axes of lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wuneng.bench.record import Row
from wuneng.bench.tables import short_length
from wuneng.pictures import plain_numbers, styles_of

__all__ = [
    "KINDS",
    "arms_of",
    "cases_of",
    "log_lengths",
    "styles_in",
    "subject",
]

KINDS = ("ops", "prefill", "decode", "train")


def styles_in(rows: Sequence[Row], like: Row) -> dict[str, dict[str, Any]]:
    """Styles in the panels of ``like``'s kind: operators and models each have all the colours."""
    return styles_of(arms_of([row for row in rows if (row.what == "ops") == (like.what == "ops")]))


def cases_of(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Title and rows of each kind of case that has two lengths or more, at the smallest batch."""
    batch = min((row.batch for row in rows), default=0)
    kinds = sorted(
        {(row.what, row.operation) for row in rows},
        key=lambda kind: (KINDS.index(kind[0]), kind[1]),
    )
    found = []
    for what, operation in kinds:
        own = [r for r in rows if (r.what, r.operation, r.batch) == (what, operation, batch)]
        if len({row.seq_len for row in own}) > 1:
            found.append((f"{what}: {operation}" if what == "ops" else what, own))
    return found


def arms_of(rows: Sequence[Row]) -> list[str]:
    """The arms of some rows, in their order."""
    return list(dict.fromkeys(row.arm for row in rows))


def log_lengths(axis: Any, rows: Sequence[Row]) -> None:
    """Both axes logarithmic, with a tick at each length."""
    from matplotlib.ticker import FixedLocator, NullLocator

    lengths = sorted({row.seq_len for row in rows})
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.xaxis.set_major_locator(FixedLocator(lengths))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticklabels([short_length(length) for length in lengths])
    axis.set_xlabel("tokens")
    plain_numbers(axis.yaxis)


def subject(record: dict[str, Any]) -> str:
    """Which model on which machine."""
    machine = record["machine"]
    place = machine.get("accelerator") or "CPU, " + (
        "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    )
    return f"{record.get('model', '')} on {place}, {machine.get('dtype', '')}".strip()
