"""A finished sweep in a table and in words, from its results.json alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wuneng.recipe.sweep import written
from wuneng.study.outcomes import figure_of
from wuneng.tables import Column, Table

__all__ = ["named_figure", "sweep_sentence", "sweep_table"]


def sweep_table(record: Mapping[str, Any]) -> Table:
    """One row for each point and arm; the best of an arm is marked."""
    paths, figures = list(record["sweep"]), record["figures"]
    columns = [*(Column(path, name=True) for path in paths), Column("arm", name=True)]
    columns += [*map(Column, ("parameters", "tokens/s", named_figure(figures))), Column("")]
    table = Table(record["name"], columns, caption="± standard error of a single figure")
    for point in record["points"]:
        for arm, entry in point["arms"].items():
            cells = [written(point["values"][path]) for path in paths]
            best = record["best"].get(arm, {}).get("point") == point["point"]
            if entry is None:
                table.add_row(*cells, arm, "–", "–", "diverged", "")
                continue
            error = entry.get("standard_error", {}).get(figures[0]) if len(figures) == 1 else None
            value = f"{figure_of(entry, figures):.4f}"
            table.add_row(
                *cells,
                arm,
                f"{entry['parameters']:,}",
                f"{entry['tokens_per_second']:,.0f}",
                value if error is None else f"{value} ± {error:.4f}",
                "best" if best else "",
            )
    return table


def sweep_sentence(record: Mapping[str, Any]) -> str:
    """The best point of every arm, and which of them lies at the edge of what was tried."""
    told = []
    for arm, best in record["best"].items():
        where = ", ".join(f"{path}={written(value)}" for path, value in best["values"].items())
        told.append(f"{arm} {best['figure']:.4f} at {where}")
    text = f"Best {named_figure(record['figures'])} of each arm: {'; '.join(told)}."
    for arm, best in record["best"].items():
        for path in best["at_edge"]:
            values = record["sweep"][path]
            side = "smallest" if best["values"][path] == min(values) else "largest"
            text += (
                f" {arm}'s best {path} is the {side} that was tried: a better one may lie beyond."
            )
    lost = [arm for arm in record["points"][0]["arms"] if arm not in record["best"]]
    if lost:
        text += f" No point has a figure of {', '.join(lost)}."
    return text + " A best of several is chosen by chance as well: compare arms from fresh seeds."


def named_figure(figures: Sequence[str]) -> str:
    """What is compared, in words."""
    if len(figures) == 1:
        return figures[0]
    return f"mean of {', '.join(figures)}" if figures else "figure"
