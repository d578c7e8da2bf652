"""Speed as a multiple of attention's, against length: above the line is faster, below it slower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wuneng.bench.compare import ratio_noise
from wuneng.bench.pictures.axes import (
    arms_of,
    cases_of,
    log_lengths,
    styles_in,
    subject,
)
from wuneng.bench.record import Row
from wuneng.pictures import GREY, head, legend_below, panels

__all__ = ["ratio"]


def ratio(rows: Sequence[Row], record: dict[str, Any]) -> Any | None:
    """A panel for each kind of case that attention stands beside at two lengths or more."""
    beside = [row for row in rows if row.speed_ratio and row.arm != row.speed_ratio_against]
    cases = cases_of(beside)
    if not cases:
        return None
    figure, axes = panels(len(cases))
    for axis, (title, own) in zip(axes, cases, strict=True):
        styles = styles_in(rows, own[0])
        yardstick = str(own[0].speed_ratio_against)
        colour = styles[yardstick]["color"] if yardstick in styles else GREY
        axis.axhline(1.0, color=colour, linestyle="--", linewidth=1.2, label=yardstick)
        for arm in arms_of(own):
            _line(axis, [row for row in own if row.arm == arm], styles[arm])
        log_lengths(axis, own)
        axis.set_title(title, fontsize=10)
        legend_below(axis, *axis.get_legend_handles_labels())
        axis.set_ylabel(f"times {yardstick}'s speed", fontsize=8)
    heading = f"{subject(record)}, batch {cases[0][1][0].batch}: speed beside attention, ± noise"
    head(figure, heading)
    return figure


def _line(axis: Any, rows: Sequence[Row], style: dict[str, Any]) -> None:
    ordered = sorted(rows, key=lambda row: row.seq_len)
    ratios = [row.speed_ratio or 0.0 for row in ordered]
    noise = [ratio_noise(row) for row in ordered]
    # a logarithmic axis has no place for what reaches below zero
    below = [min(n, 0.9 * value) for n, value in zip(noise, ratios, strict=True)]
    lengths = [row.seq_len for row in ordered]
    axis.errorbar(lengths, ratios, yerr=[below, noise], capsize=2, **style)
