"""Pictures of a record, each as SVG and PNG.

time      milliseconds against length, a panel for each kind of case, log axes
memory    peak bytes against length, likewise
decode    milliseconds per token against context, a panel for each batch
roofline  FLOP/s reached against FLOPs per byte, under the machine's two roofs

Colours are Okabe and Ito's, which stay apart for colour-blind readers; each arm also has its own
marker and dash, so that a picture survives being printed in grey.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wuneng.bench.record import Row, rows_of
from wuneng.bench.tables import short_length
from wuneng.records import write_bytes_atomic

__all__ = ["draw"]

_BLUE, _RED, _GREEN, _PINK, _ORANGE, _SKY, _BLACK = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),
)
#: Colour, marker and dash of each arm: the same in every picture.
_STYLES = {
    "wuneng": (_BLUE, "o", "-"),
    "mha": (_RED, "s", "--"),
    "rwkv7": (_GREEN, "D", "-."),
    "llama": (_PINK, "^", ":"),
    "replace": (_ORANGE, "v", "-"),
    "mha-shift": (_SKY, "P", "--"),
    "chunked": (_BLUE, "o", "-"),
    "triton": (_GREEN, "D", "-."),
    "native": (_GREEN, "D", "-."),
    "reference": (_BLACK, "X", ":"),
    "sdpa": (_RED, "s", "--"),
    "fla": (_BLACK, "p", "-."),
    "fla-chunk": (_PINK, "^", ":"),
    "fla-recurrent": (_PINK, "<", "-"),
    "flash-attn": (_ORANGE, "v", "-"),
    "flex": (_SKY, "P", "--"),
    "mamba2": (_BLACK, "h", "-"),
}
_OTHERS = ((_SKY, "h", "-"), (_ORANGE, "*", "--"), (_BLACK, "p", "-."), (_PINK, ">", ":"))
_KINDS = ("ops", "prefill", "decode", "train")
_FORMATS = ("svg", "png")
_GREY = "#555555"


def draw(record: dict[str, Any], directory: Path) -> list[Path]:
    """Write the pictures that the record has figures for; returns the PNGs' paths.

    Raises:
        DiskError: the disk is full or refuses.
    """
    import matplotlib

    matplotlib.use("Agg")
    rows = [row for row in rows_of(record) if row.median_ms is not None]
    figures = {
        "time": _against_length(rows, "median_ms", "milliseconds", record),
        "memory": _against_length(rows, "peak_bytes", "peak memory, MiB", record),
        "decode": _decode(rows),
        "roofline": _roofline(rows, record),
    }
    written = []
    for name, figure in figures.items():
        if figure is None:
            continue
        for suffix in _FORMATS:
            path = directory / f"{name}.{suffix}"
            drawn = io.BytesIO()
            figure.savefig(drawn, format=suffix, dpi=150)
            write_bytes_atomic(path, drawn.getvalue())
        written.append(directory / f"{name}.png")
        _close(figure)
    return written


def _close(figure: Any) -> None:
    from matplotlib import pyplot

    pyplot.close(figure)


def _panels(count: int, width: float = 3.6, height: float = 3.2) -> tuple[Any, list[Any]]:
    from matplotlib import pyplot

    columns = min(count, 3)
    lines = -(-count // columns)
    figure, axes = pyplot.subplots(
        lines,
        columns,
        figsize=(max(width * columns, 5.0), height * lines + 0.7),
        squeeze=False,
        layout="constrained",
    )
    flat = list(axes.flat)
    for spare in flat[count:]:
        spare.set_axis_off()
    for axis in flat[:count]:
        axis.grid(True, which="major", color="#dddddd", linewidth=0.7)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    return figure, flat[:count]


def _styles(arms: Sequence[str]) -> dict[str, dict[str, Any]]:
    unknown = [arm for arm in arms if arm not in _STYLES]
    styles = {}
    for arm in arms:
        if arm in _STYLES:
            colour, marker, dash = _STYLES[arm]
        else:
            colour, marker, dash = _OTHERS[unknown.index(arm) % len(_OTHERS)]
        styles[arm] = {
            "color": colour,
            "marker": marker,
            "linestyle": dash,
            "markersize": 5,
            "linewidth": 1.6,
            "label": arm,
        }
    return styles


def _arms(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.arm for row in rows))


def _against_length(
    rows: Sequence[Row], field: str, label: str, record: dict[str, Any]
) -> Any | None:
    """A panel for each kind of case with at least two lengths, at the smallest batch."""
    if not rows:
        return None
    batch = min(row.batch for row in rows)
    kinds = sorted(
        {(row.what, row.operation) for row in rows},
        key=lambda kind: (_KINDS.index(kind[0]), kind[1]),
    )
    panels = []
    for what, operation in kinds:
        own = [r for r in rows if (r.what, r.operation, r.batch) == (what, operation, batch)]
        if len({row.seq_len for row in own}) > 1:
            panels.append((f"{what}: {operation}" if what == "ops" else what, own))
    if not panels:
        return None
    figure, axes = _panels(len(panels))
    styles = _styles(_arms(rows))
    quantity = "time" if field == "median_ms" else "memory"
    for axis, (title, own) in zip(axes, panels, strict=True):
        for arm in _arms(own):
            _line(axis, [row for row in own if row.arm == arm], field, styles[arm])
        axis.set_title(title, fontsize=10)
        _log_lengths(axis, own)
        slopes = _slopes(record, own[0], quantity)
        handles, labels = axis.get_legend_handles_labels()
        labels = [f"{name}  T^{slopes[name]:.2f}" if name in slopes else name for name in labels]
        axis.legend(handles, labels, fontsize=7, frameon=False)
    for axis in axes[:: min(len(axes), 3)]:
        axis.set_ylabel(label)
    figure.suptitle(f"{_subject(record)}, batch {batch}", fontsize=10, color=_GREY)
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


def _log_lengths(axis: Any, rows: Sequence[Row]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    lengths = sorted({row.seq_len for row in rows})
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.xaxis.set_major_locator(FixedLocator(lengths))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticklabels([short_length(length) for length in lengths])
    axis.set_xlabel("tokens")
    _plain_numbers(axis.yaxis)


def _plain_numbers(axis: Any) -> None:
    """1, 10, 100 and, where the range is short, what lies between, instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axis.axes.autoscale_view()
    low, high = axis.get_view_interval()
    span = high / max(low, 1e-30)
    subs = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8) if span < 5 else (1, 2, 5) if span < 30 else (1,)
    axis.set_major_locator(LogLocator(subs=subs))
    # On less than a decade matplotlib puts ticks at 3.5, 4, 4.5: no two may read the same.
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}" if v >= 1e3 else f"{v:.3g}"))
    axis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


def _slopes(record: dict[str, Any], like: Row, quantity: str) -> dict[str, float]:
    return {
        entry["arm"]: entry["exponent"]
        for entry in record["exponents"]
        if (entry["what"], entry["operation"], entry["batch"], entry["quantity"])
        == (like.what, like.operation, like.batch, quantity)
    }


def _decode(rows: Sequence[Row]) -> Any | None:
    own = [row for row in rows if row.what == "decode"]
    batches = sorted({row.batch for row in own})
    if not own:
        return None
    figure, axes = _panels(len(batches), width=5.0, height=3.4)
    styles = _styles(_arms(own))
    for axis, batch in zip(axes, batches, strict=True):
        for arm in _arms(own):
            members = [row for row in own if (row.arm, row.batch) == (arm, batch)]
            _line(axis, members, "median_ms", styles[arm])
        _log_lengths(axis, own)
        axis.set_yscale("linear")
        axis.set_ylim(bottom=0)
        axis.set_xlabel("tokens of context")
        axis.set_title(f"batch {batch}", fontsize=10)
        axis.legend(fontsize=8, frameon=False)
    axes[0].set_ylabel("milliseconds per token")
    figure.suptitle("decoding: latency against context", fontsize=10, color=_GREY)
    return figure


def _roofline(rows: Sequence[Row], record: dict[str, Any]) -> Any | None:
    own = [row for row in rows if row.flops and row.bytes]
    if not own:
        return None
    import numpy as np

    figure, (axis,) = _panels(1, width=6.4, height=4.4)
    roof = record["roofline"]
    bandwidth, peak = roof["bandwidth_bytes_per_second"], roof["matmul_flops"]
    intensity = [row.flops / row.bytes for row in own]  # type: ignore[operator]
    ends = min(*intensity, peak / bandwidth) / 2, max(*intensity, peak / bandwidth) * 2
    x = np.geomspace(*ends, 200)
    axis.plot(x, np.minimum(x * bandwidth, peak) / 1e9, color="black", linewidth=1.4)
    axis.annotate(
        f"{bandwidth / 1e9:,.1f} GB/s  |  {peak / 1e9:,.0f} GFLOP/s",
        (peak / bandwidth, peak / 1e9),
        xytext=(0, 6),
        textcoords="offset points",
        ha="center",
        fontsize=8,
        color=_GREY,
    )
    styles = _styles(_arms(own))
    sizes = {"ops": 22, "prefill": 42, "decode": 70, "train": 100}
    for row, at in zip(own, intensity, strict=True):
        style = styles[row.arm]
        reached = row.flops / (row.median_ms / 1000) / 1e9  # type: ignore[operator]
        axis.scatter(
            at,
            reached,
            s=sizes[row.what],
            marker=style["marker"],
            facecolors=style["color"] if row.what == "ops" else "none",
            edgecolors=style["color"],
            linewidths=1.3,
            alpha=0.85,
        )
    axis.set_xscale("log")
    axis.set_yscale("log")
    _plain_numbers(axis.xaxis)
    _plain_numbers(axis.yaxis)
    axis.set_xlabel("FLOPs per byte that the work needs at least")
    axis.set_ylabel("GFLOP/s reached (useful work only)")
    _roofline_legend(axis, styles, sizes, {row.what for row in own})
    figure.suptitle(f"{_subject(record)}: roofline", fontsize=10, color=_GREY)
    return figure


def _roofline_legend(
    axis: Any, styles: dict[str, dict[str, Any]], sizes: dict[str, int], whats: set[str]
) -> None:
    from matplotlib.lines import Line2D

    arms = [
        Line2D([], [], color=s["color"], marker=s["marker"], linestyle="", label=arm)
        for arm, s in styles.items()
    ]
    kinds = [
        Line2D(
            [],
            [],
            color=_GREY,
            marker="o",
            linestyle="",
            markersize=size**0.5,
            markerfacecolor=_GREY if what == "ops" else "none",
            label=what,
        )
        for what, size in sizes.items()
        if what in whats
    ]
    axis.legend(
        handles=arms + kinds, fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5)
    )


def _subject(record: dict[str, Any]) -> str:
    machine = record["machine"]
    place = machine.get("accelerator") or "CPU, " + (
        "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    )
    return f"{record.get('model', '')} on {place}, {machine.get('dtype', '')}".strip()
