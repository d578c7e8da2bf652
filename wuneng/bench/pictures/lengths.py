"""Time, memory and decoding latency against length, on log axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wuneng.bench.pictures.axes import (
    arms_of,
    cases_of,
    log_lengths,
    styles_in,
    subject,
)
from wuneng.bench.record import Row
from wuneng.pictures import head, legend_below, panels, styles_of

__all__ = ["against_length", "decoding"]


def against_length(
    rows: Sequence[Row], field: str, label: str, record: dict[str, Any]
) -> Any | None:
    """A panel for each kind of case with at least two lengths, at the smallest batch."""
    cases = cases_of(rows)
    if not cases:
        return None
    figure, axes = panels(len(cases))
    quantity = "time" if field == "median_ms" else "memory"
    for axis, (title, own) in zip(axes, cases, strict=True):
        styles = styles_in(rows, own[0])
        for arm in arms_of(own):
            _line(axis, [row for row in own if row.arm == arm], field, styles[arm])
        axis.set_title(title, fontsize=10)
        log_lengths(axis, own)
        slopes = _slopes(record, own[0], quantity)
        handles, labels = axis.get_legend_handles_labels()
        labels = [f"{name}  T^{slopes[name]:.2f}" if name in slopes else name for name in labels]
        legend_below(axis, handles, labels)
    for axis in axes[:: min(len(axes), 3)]:
        axis.set_ylabel(label)
    head(figure, f"{subject(record)}, batch {cases[0][1][0].batch}")
    return figure


def _line(axis: Any, rows: Sequence[Row], field: str, style: dict[str, Any]) -> None:
    ordered = sorted(rows, key=lambda row: row.seq_len)
    points = [(row, getattr(row, field)) for row in ordered if getattr(row, field)]
    if not points:
        return
    lengths = [row.seq_len for row, _ in points]
    if field == "peak_bytes":
        axis.plot(lengths, [value / 2**20 for _, value in points], **style)
        return
    half = [(row.spread_ms or 0.0) / 2 for row, _ in points]
    # a logarithmic axis has no place for what reaches below zero
    below = [min(h, 0.9 * value) for h, (_, value) in zip(half, points, strict=True)]
    axis.errorbar(lengths, [v for _, v in points], yerr=[below, half], capsize=2, **style)


def _slopes(record: dict[str, Any], like: Row, quantity: str) -> dict[str, float]:
    return {
        entry["arm"]: entry["exponent"]
        for entry in record["exponents"]
        if (entry["what"], entry["operation"], entry["batch"], entry["quantity"])
        == (like.what, like.operation, like.batch, quantity)
    }


def decoding(rows: Sequence[Row]) -> Any | None:
    own = [row for row in rows if row.what == "decode"]
    batches = sorted({row.batch for row in own})
    if not own:
        return None
    figure, axes = panels(len(batches), width=5.0, height=3.4)
    styles = styles_of(arms_of(own))
    for axis, batch in zip(axes, batches, strict=True):
        for arm in arms_of(own):
            members = [row for row in own if (row.arm, row.batch) == (arm, batch)]
            _line(axis, members, "median_ms", styles[arm])
        log_lengths(axis, own)
        axis.set_yscale("linear")
        axis.set_ylim(bottom=0)
        axis.set_xlabel("tokens of context")
        axis.set_title(f"batch {batch}", fontsize=10)
        legend_below(axis, *axis.get_legend_handles_labels())
    axes[0].set_ylabel("milliseconds per token")
    head(figure, "decoding: latency against context")
    return figure
