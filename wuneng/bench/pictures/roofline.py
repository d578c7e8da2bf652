"""FLOP/s reached against FLOPs per byte, under the machine's two roofs.

A panel for operators and one for models; in each, a series is one arm in one kind of case. Its
colour is its arm's, its marker the kind's, and a thin line leads from its shortest length to its
longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from wuneng.bench.pictures.axes import (
    KINDS,
    arms_of,
    subject,
)
from wuneng.bench.record import Row
from wuneng.pictures import GREY, head, legend_below, panels, plain_numbers, styles_of

__all__ = ["roofline"]

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def roofline(rows: Sequence[Row], record: dict[str, Any]) -> Any | None:
    """The picture, or None where no row has its work counted."""
    counted = [row for row in rows if row.flops and row.bytes and row.median_ms]
    operators = [row for row in counted if row.what == "ops"]
    models = [row for row in counted if row.what != "ops"]
    shown = {name: own for name, own in (("operators", operators), ("models", models)) if own}
    if not shown:
        return None
    figure, axes = panels(len(shown), width=5.2, height=5.0)
    for axis, (name, own) in zip(axes, shown.items(), strict=True):
        _roof(axis, [_intensity(row) for row in own], record["roofline"])
        _points(axis, own)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("FLOPs per byte that the work needs at least")
    axes[0].set_ylabel("GFLOP/s reached (useful work only)")
    roof = record["roofline"]
    bandwidth, peak = roof["bandwidth_bytes_per_second"], roof["matmul_flops"]
    heading = (
        f"{subject(record)}: roofline, {bandwidth / 1e9:,.1f} GB/s and {peak / 1e9:,.0f} GFLOP/s"
    )
    head(figure, heading)
    return figure


def _roof(axis: Any, intensities: Sequence[float], roof: dict[str, Any]) -> None:
    import numpy as np

    bandwidth, peak = roof["bandwidth_bytes_per_second"], roof["matmul_flops"]
    ends = min(*intensities, peak / bandwidth) / 2, max(*intensities, peak / bandwidth) * 2
    x = np.geomspace(*ends, 200)
    axis.plot(x, np.minimum(x * bandwidth, peak) / 1e9, color="black", linewidth=1.4)


def _points(axis: Any, rows: Sequence[Row]) -> None:
    styles = styles_of(arms_of(rows))
    kinds = sorted({_kind(row) for row in rows}, key=lambda kind: (kind not in KINDS, kind))
    markers = dict(zip(kinds, _MARKERS, strict=False))
    for arm in arms_of(rows):
        for kind in kinds:
            own = [row for row in rows if (row.arm, _kind(row)) == (arm, kind)]
            for batch in sorted({row.batch for row in own}):
                series = sorted((r for r in own if r.batch == batch), key=lambda row: row.seq_len)
                axis.plot(
                    [_intensity(row) for row in series],
                    [_reached(row) for row in series],
                    color=styles[arm]["color"],
                    marker=markers[kind],
                    markerfacecolor="none",
                    markersize=6,
                    linewidth=0.8,
                )
    axis.set_xscale("log")
    axis.set_yscale("log")
    plain_numbers(axis.xaxis)
    plain_numbers(axis.yaxis)
    _legend(axis, {arm: style["color"] for arm, style in styles.items()}, markers)


def _legend(axis: Any, colours: dict[str, str], markers: dict[str, str]) -> None:
    from matplotlib.lines import Line2D

    arms = [Line2D([], [], color=colour, linewidth=3, label=arm) for arm, colour in colours.items()]
    kinds = [
        Line2D([], [], color=GREY, marker=marker, markerfacecolor="none", linestyle="", label=kind)
        for kind, marker in markers.items()
    ]
    handles = arms + kinds
    legend_below(axis, handles, [str(handle.get_label()) for handle in handles])


def _kind(row: Row) -> str:
    return row.operation if row.what == "ops" else row.what


def _intensity(row: Row) -> float:
    return (row.flops or 0.0) / (row.bytes or 1.0)


def _reached(row: Row) -> float:
    """GFLOP/s."""
    return (row.flops or 0.0) / ((row.median_ms or 1.0) / 1000) / 1e9
