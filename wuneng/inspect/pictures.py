"""Pictures of a record, each as SVG and PNG, in the style of the bench's.

heads     half-life, in-context rate, gate and attention entropy, maps of layers by heads
states    norm and effective rank of the states against tokens, a panel for each layer
flips     where each state is on the line that it moves along most, and its in-context rate,
          likewise: a state that flips jumps from one side to the other
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wuneng.pictures import head as heading
from wuneng.pictures import legend_below, panels, styles_of, write_figures

__all__ = ["draw"]

_SPELLED = 48  # tokens that there is room to spell below an axis
_MAPS = (
    ("decay half-life, tokens", "state", lambda part: part["half_life"]["median"]),
    ("in-context rate", "state", lambda part: part["rate"]),
    ("gate: weight of the state", "middle", lambda part: part["gate"]),
    ("attention entropy, nats", "attention", lambda part: part["entropy"]),
)


def draw(record: dict[str, Any], directory: Path) -> list[Path]:
    """Write the pictures that the record has figures for; returns the PNGs' paths.

    Raises:
        DiskError: the disk is full or refuses.
    """
    return write_figures(
        lambda: {
            "heads": _heads(record),
            "states": _lines(record, ("norm", "rank"), "norm (solid), effective rank (dashed)"),
            "flips": _lines(
                record,
                ("coordinate", "rate_over_time"),
                "leading coordinate (solid), in-context rate (dashed)",
            ),
        },
        directory,
    )


def _heads(record: dict[str, Any]) -> Any | None:
    shown = []
    for title, part, values in _MAPS:
        rows = {
            layer["layer"]: found
            for layer in record["layers"]
            if part in layer and (found := values(layer[part])) is not None
        }
        if rows:
            shown.append((title, rows))
    if not shown:
        return None
    figure, axes = panels(len(shown), width=3.4, height=3.0)
    for axis, (title, rows) in zip(axes, shown, strict=True):
        _map(figure, axis, rows, logarithmic=title.startswith("decay"))
        axis.set_title(title, fontsize=10)
    heading(figure, _subject(record))
    return figure


def _map(figure: Any, axis: Any, rows: dict[int, list[Any]], *, logarithmic: bool) -> None:
    import numpy as np
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import FuncFormatter, LogLocator

    width = max(map(len, rows.values()))
    values = np.full((len(rows), width), np.nan)
    for line, found in enumerate(rows.values()):
        values[line, : len(found)] = [np.nan if one is None else one for one in found]
    positive = values[np.isfinite(values) & (values > 0)]
    norm = LogNorm(positive.min(), positive.max()) if logarithmic and positive.size else None
    axis.grid(False)
    drawn = axis.imshow(values, cmap="cividis", aspect="auto", norm=norm)
    bar = figure.colorbar(drawn, ax=axis, shrink=0.8)
    if norm is not None:
        bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.3g}"))
        bar.minorticks_off()
    axis.set_xticks(range(width))
    axis.set_yticks(range(len(rows)), labels=[str(layer) for layer in rows])
    axis.set_xlabel("head")
    axis.set_ylabel("layer")


def _lines(record: dict[str, Any], quantities: tuple[str, ...], label: str) -> Any | None:
    own = [layer for layer in record["layers"] if "state" in layer]
    if not own:
        return None
    figure, axes = panels(len(own))
    for axis, layer in zip(axes, own, strict=True):
        state = layer["state"]
        names = [f"head {n}" for n in range(len(state["rate"]))]
        styles = styles_of(names)
        for dash, quantity in zip(("-", "--"), quantities, strict=False):
            rows = state[quantity]
            tokens = (
                state["tokens"] if len(rows) == len(state["tokens"]) else range(1, 1 + len(rows))
            )
            for head, name in enumerate(names):
                style = {**styles[name], "linestyle": dash, "marker": "", "linewidth": 1.2}
                style["label"] = name if dash == "-" else None
                axis.plot(tokens, [row[head] for row in rows], **style)
        _mark_ones(axis, record["text"].get("ones"))
        axis.set_title(f"layer {layer['layer']}", fontsize=10)
        axis.set_xlabel("tokens")
        spelled = record["text"]["spelled"]
        room = 0.46
        if len(spelled) <= _SPELLED:
            room += 0.06 * max(map(len, spelled))
            labels = [repr(one)[1:-1] for one in spelled]  # a line break would be one
            axis.set_xticks(range(1, 1 + len(labels)), labels=labels, fontsize=5, rotation=90)
        if len(names) <= 8:
            legend_below(axis, *axis.get_legend_handles_labels(), inches=room)
    for axis in axes[::3]:
        axis.set_ylabel(label, fontsize=8)
    heading(figure, _subject(record))
    return figure


def _mark_ones(axis: Any, ones: list[int] | None) -> None:
    """A line at every one of a row of parity: there a state that keeps it turns."""
    if ones:
        upright = axis.get_xaxis_transform()
        axis.vlines(
            ones, 0, 1, transform=upright, color="#bbbbbb", linewidth=0.8, zorder=0, label="a one"
        )


def _subject(record: dict[str, Any]) -> str:
    text = record["text"]
    return f"{record['model']['label']} over {text['tokens']:,} tokens of {text['source']}"
