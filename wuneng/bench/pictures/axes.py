"""What every picture has in common: colours, panels, axes of lengths and of plain numbers.

An arm's colour is its own within a panel, whatever else is in it: two series never share one.
Okabe and Ito's colours, which stay apart for colour-blind readers, come first; each arm also has
its own marker and dash, so that a picture survives being printed in grey.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from wuneng.bench.record import Row
from wuneng.bench.tables import short_length

__all__ = [
    "GREY",
    "KINDS",
    "arms_of",
    "cases_of",
    "head",
    "log_lengths",
    "panels",
    "plain_numbers",
    "styles_in",
    "styles_of",
    "subject",
]

KINDS = ("ops", "prefill", "decode", "train")
GREY = "#555555"

_BLUE, _RED, _GREEN, _PINK, _ORANGE, _SKY, _BLACK = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),
)
_WINE, _OLIVE, _INDIGO, _BROWN, _SAND, _SLATE = (
    *("#882255", "#999933", "#332288", "#8C510A", "#C2B280", "#7F7F7F"),
)
_FIRST_COLOURS = (_BLUE, _RED, _GREEN, _PINK, _ORANGE, _SKY, _BLACK)
_PALETTE = (*_FIRST_COLOURS, _WINE, _OLIVE, _INDIGO, _BROWN, _SAND, _SLATE)
#: Colour, marker and dash of each arm, where no other arm of the panel has the colour already.
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
    "fla-recurrent": (_WINE, "<", "-"),
    "flash-attn": (_ORANGE, "v", "-"),
    "flex": (_SKY, "P", "--"),
    "mamba2": (_BROWN, "h", "-"),
    "eager": (_SLATE, "h", "-"),
    "fused": (_OLIVE, "*", "--"),
    "compiled": (_INDIGO, ">", ":"),
}
#: Of a wide letter at the headings' 10 points, so that no heading is wider than its figure.
_INCHES_A_CHARACTER = 0.1
_OTHER_MARKERS = ("h", "*", "p", ">", "d", "<")


def panels(count: int, width: float = 3.6, height: float = 3.2) -> tuple[Any, list[Any]]:
    """A figure and ``count`` axes in it, three a line; inches a panel."""
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


def styles_of(arms: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Keyword arguments of a line for each arm of a panel; no two arms have one colour."""
    known = {_STYLES[arm][0] for arm in arms if arm in _STYLES}
    spare = iter([colour for colour in _PALETTE if colour not in known])
    styles: dict[str, dict[str, Any]] = {}
    for number, arm in enumerate(arms):
        marker = _OTHER_MARKERS[number % len(_OTHER_MARKERS)]
        colour, marker, dash = _STYLES.get(arm, ("", marker, ("-", "--", ":", "-.")[number % 4]))
        if not colour or colour in [style["color"] for style in styles.values()]:
            colour = next(spare, "") or _shade(number)
        styles[arm] = {
            "color": colour,
            "marker": marker,
            "linestyle": dash,
            "markersize": 5,
            "linewidth": 1.6,
            "label": arm,
        }
    return styles


def styles_in(rows: Sequence[Row], like: Row) -> dict[str, dict[str, Any]]:
    """Styles in the panels of ``like``'s kind: operators and models each have all the colours."""
    return styles_of(arms_of([row for row in rows if (row.what == "ops") == (like.what == "ops")]))


def _shade(number: int) -> str:
    """More arms than the palette has colours: from around the wheel, each once."""
    from matplotlib.colors import hsv_to_rgb, to_hex

    return str(to_hex(hsv_to_rgb((number * 0.381966 % 1, 0.45 + 0.1 * (number % 3), 0.6))))


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


def plain_numbers(axis: Any) -> None:
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


def head(figure: Any, text: str) -> None:
    """A heading above all panels, in as many lines as the figure's width takes."""
    characters = int(figure.get_figwidth() / _INCHES_A_CHARACTER)
    figure.suptitle(textwrap.fill(text, characters), fontsize=10, color=GREY)


def subject(record: dict[str, Any]) -> str:
    """Which model on which machine."""
    machine = record["machine"]
    place = machine.get("accelerator") or "CPU, " + (
        "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    )
    return f"{record.get('model', '')} on {place}, {machine.get('dtype', '')}".strip()
