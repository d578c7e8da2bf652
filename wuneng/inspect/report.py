"""A record of :mod:`wuneng.inspect.session` as tables, CSV and markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

from wuneng.tables import Column, Table

__all__ = ["csv_text", "markdown", "missing_lines", "tables"]

_ELSEWHERE = "the output of --format json"
_STATE = ("half-life", "shortest", "longest", "rate", "largest rate", "norm", "rank", "flips")
_MIDDLE = ("gate", "share")


def tables(record: dict[str, Any]) -> Iterator[Table]:
    """A row for each state head, with the middle head above it, then one for each attention head.
    Columns that no layer fills are left out."""
    what = f"{record['model']['label']} over {record['text']['tokens']:,} tokens"
    rows = [(_name(layer, head), cells) for layer, head, cells in _state_rows(record)]
    if rows:
        filled = [n for n in (*_STATE, *_MIDDLE) if any(cells.get(n) for _, cells in rows)]
        table = Table(
            f"state heads of {what}",
            [Column("head", name=True), *(Column(n, spare=n in _SPARE) for n in filled)],
            caption="layer.head; half-lives in tokens (median channel first); norm and rank of the "
            "last state; flips: its leading coordinate changes sign; gate, share: how much its "
            "middle head listens to the state",
            elsewhere=_ELSEWHERE,
        )
        for name, cells in rows:
            table.add_row(name, *(cells.get(column, "") for column in filled))
        yield table
    if attending := [layer for layer in record["layers"] if "attention" in layer]:
        table = Table(
            f"attention heads of {what}",
            [Column("head", name=True), Column("entropy"), Column("of uniform")],
            caption="layer.head; mean over tokens, in nats and as a share of attention evenly "
            "spread",
        )
        for layer in attending:
            found = layer["attention"]
            for head, nats in enumerate(found["entropy"]):
                share = nats / found["uniform"] if found["uniform"] else 0.0
                table.add_row(_name(layer, head), f"{nats:.3f}", f"{share:.0%}")
        yield table


_SPARE = ("shortest", "longest", "largest rate", "share")


def missing_lines(record: dict[str, Any]) -> list[str]:
    """What layers have not, a line for each sentence."""
    found: dict[str, list[int]] = {}
    for layer in record["layers"]:
        for sentence in layer["missing"]:
            found.setdefault(sentence, []).append(layer["layer"])
    everywhere = len(record["layers"])
    return [
        f"{'every layer' if len(where) == everywhere else _listed(where)}: {sentence}."
        for sentence, where in found.items()
    ]


def csv_text(record: dict[str, Any]) -> str:
    """One row for each layer, part, head, quantity and, for what moves, token; a header first."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["layer", "part", "head", "quantity", "token", "value"])
    for layer in record["layers"]:
        for part in ("state", "middle", "attention"):
            for quantity, token, head, value in _values(layer.get(part, {})):
                writer.writerow([layer["layer"], part, head, quantity, token, value])
    return out.getvalue()


def markdown(record: dict[str, Any]) -> str:
    """The tables as markdown, with what is missing below them."""
    pieces = []
    for table in tables(record):
        lines = [f"**{table.title}**", ""] if table.title else []
        lines.append("| " + " | ".join(column.heading for column in table.columns) + " |")
        lines.append("|---|" + "---:|" * (len(table.columns) - 1))
        lines += ["| " + " | ".join(row) + " |" for row in table.rows]
        pieces.append("\n".join([*lines, "", table.caption or ""]))
    return "\n\n".join([*pieces, *missing_lines(record)]).strip() + "\n"


def _values(part: dict[str, Any]) -> Iterator[tuple[str, Any, int, Any]]:
    """quantity, token (from 1; empty where it is of the whole text), head, value."""
    times = part.get("tokens")
    for quantity, found in part.items():
        if quantity in ("kind", "tokens", "uniform") or found is None:
            continue
        if isinstance(found, dict):
            for name, values in found.items():
                for head, value in enumerate(values):
                    yield f"{quantity}_{name}", "", head, "" if value is None else value
        elif isinstance(found[0], list):
            places = times if quantity in ("norm", "rank") else range(1, len(found) + 1)
            for token, values in zip(places or (), found, strict=True):
                for head, value in enumerate(values):
                    yield quantity, token, head, value
        else:
            for head, value in enumerate(found):
                yield quantity, "", head, value


def _state_rows(record: dict[str, Any]) -> Iterator[tuple[dict[str, Any], int, dict[str, str]]]:
    for layer in record["layers"]:
        state, middle = layer.get("state"), layer.get("middle") or {}
        heads = (
            len(state["rate"]) if state else len(middle.get("share") or middle.get("gate") or ())
        )
        for head in range(heads):
            cells = {} if state is None else _state_cells(state, head)
            for name in _MIDDLE:
                if middle.get(name) is not None:
                    cells[name] = f"{middle[name][head]:.2f}"
            yield layer, head, cells


def _state_cells(state: dict[str, Any], head: int) -> dict[str, str]:
    times = {name: values[head] for name, values in state["half_life"].items()}
    return {
        "half-life": _time(times["median"]),
        "shortest": _time(times["shortest"]),
        "longest": _time(times["longest"]),
        "rate": f"{state['rate'][head]:.2f}",
        "largest rate": f"{state['rate_largest'][head]:.2f}",
        "norm": f"{state['norm'][-1][head]:.3g}",
        "rank": f"{state['rank'][-1][head]:.1f}",
        "flips": str(state["flips"][head]),
    }


def _time(tokens: float | None) -> str:
    if tokens is None:
        return "never"
    return f"{tokens:,.0f}" if tokens >= 100 else f"{tokens:.1f}"


def _name(layer: dict[str, Any], head: int) -> str:
    return f"{layer['layer']}.{head}"


def _listed(layers: list[int]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"
