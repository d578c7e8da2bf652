"""Figures of panels, a heading above them, and plain numbers along their axes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from wuneng.pictures.styles import GREY

__all__ = ["drawing", "head", "legend_below", "panels", "plain_numbers"]

#: Of a wide letter at the headings' 10 points, so that no heading is wider than its figure.
_INCHES_A_CHARACTER = 0.1
#: The same at the legends' 7 points, where letters are narrow as well.
_INCHES_A_SMALL_CHARACTER = 0.055
#: Characters that a legend's line and the gap behind a name take.
_SAMPLE = 8


@contextmanager
def drawing(**settings: Any) -> Iterator[None]:
    """Draw to files, on no screen; names are shown as they are: a "$" in them begins no formula."""
    import matplotlib

    matplotlib.use("Agg")
    with matplotlib.rc_context({"text.parse_math": False, **settings}):
        yield


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


def legend_below(
    axis: Any, handles: Sequence[Any], labels: Sequence[str], *, inches: float = 0.46
) -> None:
    """A legend under the axis: within it, lines lie wherever there would be room.

    Args:
        inches: that the axis' own numbers and name take below it.
    """
    from matplotlib.transforms import ScaledTranslation

    if not labels:
        return
    figure = axis.figure
    width = figure.get_figwidth() / axis.get_subplotspec().get_gridspec().ncols
    columns = int(width / (_INCHES_A_SMALL_CHARACTER * (max(map(len, labels)) + _SAMPLE)))
    axis.legend(
        handles,
        labels,
        fontsize=7,
        frameon=False,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        bbox_transform=axis.transAxes + ScaledTranslation(0, -inches, figure.dpi_scale_trans),
        borderaxespad=0.0,
        columnspacing=1.0,
        ncols=min(max(columns, 1), len(labels)),
    )


def head(figure: Any, text: str) -> None:
    """A heading above all panels, in as many lines as the figure's width takes."""
    characters = int(figure.get_figwidth() / _INCHES_A_CHARACTER)
    figure.suptitle(textwrap.fill(text, characters), fontsize=10, color=GREY)
