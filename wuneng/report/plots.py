"""The kinds of panels that sections draw: lines with bands, intervals in rows, a map, a cloud."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wuneng.pictures import GREY, legend_below, plain_numbers, styles_of
from wuneng.report.section import label

__all__ = ["Interval", "Line", "cloud", "forest", "heat_map", "lines"]


_APART = 1.4
"""By what factor ticks differ whose labels do not run into each other."""


@dataclass(frozen=True)
class Line:
    """A series; ``low`` and ``high`` bound its band, where it has one."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True)
class Interval:
    """A value with its interval, where it has one; ``bound`` marks a value that is only a bound,
    ``wide`` is a second interval, drawn thin."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    bound: bool = False
    wide: tuple[float, float] | None = None


def lines(
    axis: Any,
    series: Sequence[Line],
    arms: Sequence[str],
    *,
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
) -> None:
    """Every line in its arm's colour; ``arms`` are those of the whole run, in one order."""
    from matplotlib.ticker import EngFormatter

    styles = styles_of(list(arms))
    handles = []
    for line in series:
        style = dict(styles[line.name]) | {"label": label(line.name)}
        style |= {"markersize": 3.5 if len(line.x) < 30 else 0}
        handles += axis.plot(line.x, line.y, **style)
        if line.low is not None and line.high is not None:
            axis.fill_between(
                line.x, line.low, line.high, color=style["color"], alpha=0.2, linewidth=0
            )
    if log_x:
        _log_ticks(axis, sorted({place for line in series for place in line.x}))
    else:
        # 1.5M at every tick, where matplotlib would write 1.5 and, in a corner, 1e6.
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    if log_y:
        axis.set_yscale("log")
        plain_numbers(axis.yaxis)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    legend_below(axis, handles, [label(line.name) for line in series])


def _log_ticks(axis: Any, places: Sequence[float]) -> None:
    """A logarithmic x axis with a tick at each place, or at plain numbers where they are many.

    Of places so near that their labels would run into each other, the first has a tick.
    """
    from matplotlib.ticker import EngFormatter, FixedLocator, NullLocator

    axis.set_xscale("log", base=2)
    apart: list[float] = []
    for place in places:
        if not apart or place >= _APART * apart[-1]:
            apart.append(place)
    if len(apart) > 8:
        plain_numbers(axis.xaxis)
        return
    axis.xaxis.set_major_locator(FixedLocator(apart))
    axis.xaxis.set_minor_locator(NullLocator())
    large = EngFormatter(sep="", places=1)
    axis.set_xticklabels([f"{p:,.0f}" if p < 100_000 else large(p) for p in apart])


def forest(axis: Any, rows: Sequence[Interval], *, x: str, zero: float = 0.0) -> None:
    """A row for each interval, the first on top, beside the line of no difference."""
    axis.axvline(zero, color=GREY, linewidth=1, linestyle="--")
    for place, row in enumerate(rows):
        away = row.low is not None and row.high is not None and (row.low > zero or row.high < zero)
        colour = "#0072B2" if away else GREY
        if row.low is not None and row.high is not None:
            axis.plot([row.low, row.high], [place, place], color=colour, linewidth=2)
        if row.wide is not None:
            axis.plot(row.wide, [place, place], color=colour, linewidth=0.8)
        marker = "<" if row.bound else "o" if away else "s"
        axis.plot([row.value], [place], color=colour, marker=marker, markersize=5)
    axis.set_yticks(range(len(rows)), [label(row.name, 48) for row in rows], fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    # To the right end: centred under a panel that long names leave little room, it would be cut.
    axis.set_xlabel(x, fontsize=8, loc="right")
    axis.grid(False, axis="y")


def heat_map(axis: Any, values: Sequence[Sequence[float | None]], *, colour: str) -> None:
    """Layers downward, heads to the right; white (or the page's colour) is no change."""
    import math

    from matplotlib import colormaps

    known = [abs(one) for row in values for one in row if one is not None and math.isfinite(one)]
    most = max(known, default=0.0) or 1.0
    filled = [[math.nan if one is None else one for one in row] for row in values]
    edges = [place - 0.5 for place in range(max(len(filled), len(filled[0])) + 1)]
    image = axis.pcolormesh(
        edges[: len(filled[0]) + 1],
        edges[: len(filled) + 1],
        filled,
        cmap=colormaps["PuOr"].resampled(21),  # of many colours the bar would be a bitmap
        vmin=-most,
        vmax=most,
    )
    axis.invert_yaxis()
    bar = axis.figure.colorbar(image, ax=axis)
    bar.set_label(colour, fontsize=8)
    axis.set_xticks(range(len(filled[0])))
    axis.set_yticks(range(len(filled)))
    axis.set_xlabel("head")
    axis.set_ylabel("layer")
    axis.grid(False)


def cloud(
    axis: Any, points: Mapping[str, tuple[float, float]], best: set[str], *, x: str, y: str
) -> None:
    """A point for each arm; a ring around those that no other arm beats in both."""
    styles = styles_of(list(points))
    handles = []
    for arm, (cost, quality) in points.items():
        style = {key: styles[arm][key] for key in ("color", "marker")}
        handles += axis.plot([cost], [quality], linestyle="", markersize=7, **style)
        if arm in best:
            axis.plot(
                [cost], [quality], marker="o", markersize=14, markerfacecolor="none", color=GREY
            )
    axis.margins(0.15)
    axis.ticklabel_format(useOffset=False)
    axis.locator_params(axis="x", nbins=4)  # costs that hardly differ have long labels
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    legend_below(axis, handles, [label(arm) for arm in points])
