"""Controls after training: what a wrong state costs, and what each head does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from wuneng.report.plots import Interval, Line, forest, heat_map, lines
from wuneng.report.records import Records
from wuneng.report.section import Picture, Section, label
from wuneng.report.setting import command_of

__all__ = ["controls", "heads"]


def controls(records: Records) -> Section | None:
    """What each control changes, control minus the model as it is."""
    rows: list[dict[str, Any]] = []
    pictures: list[Picture] = []
    for task, metric, found in _metrics(records):
        own = [_row(task, metric, name, one) for name, one in (found.get("controls") or {}).items()]
        rows += own
        shown = [
            Interval(row["control"], row["difference"], row["low"], row["high"])
            for row in own
            if row["difference"] is not None
        ]
        if shown and not any(picture.title.startswith(f"{task} ") for picture in pictures):
            pictures.append(_forest(f"{task} {metric}", shown, bool(found.get("higher_is_better"))))
            pictures += _spans(f"{task} {metric}", own, found.get("value"))
    if not rows:
        return None
    sentences = [
        str(one["sentence"])
        for one in (records.controls or {}).get("attribution") or ()
        if isinstance(one, Mapping) and one.get("sentence")
    ]
    words = (
        "What changes when the state is another one, or none: control minus the model as it is, "
        "on the same items, with 95 % intervals."
    )
    text = (words, *sentences)
    made_by = command_of(records.controls)
    return Section("controls", "Controls", text, tuple(rows), tuple(pictures), command=made_by)


def heads(records: Records) -> Section | None:
    """A map of layers by heads for each part: what silencing one head alone changes."""
    rows: list[dict[str, Any]] = []
    pictures: list[Picture] = []
    for task, metric, found in _metrics(records):
        for part, table in (found.get("heads") or {}).items():
            values = [[_difference(cell) for cell in layer] for layer in table]
            rows += [
                {"task": task, "metric": metric, "part": part, "layer": layer, "head": head}
                | {"difference": value}
                for layer, line in enumerate(values)
                for head, value in enumerate(line)
                if value is not None
            ]
            if any(value is not None for line in values for value in line):
                pictures.append(_map(f"{task} {metric}: {part} heads", values, metric))
    if not rows:
        return None
    text = (
        "What changes when one head alone is silenced. Exploratory: not corrected for the number "
        "of heads.",
    )
    made_by = command_of(records.controls)
    return Section("heads", "Heads", text, tuple(rows), tuple(pictures), command=made_by)


def _metrics(records: Records) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for task, one in ((records.controls or {}).get("tasks") or {}).items():
        for metric, found in one["metrics"].items():
            yield task, metric, found


def _row(task: str, metric: str, name: str, one: Mapping[str, Any]) -> dict[str, Any]:
    low, high = one.get("ci95") or (None, None)
    row = {"task": task, "metric": metric, "control": name, "value": one.get("value")}
    row |= {"difference": one.get("difference"), "low": low, "high": high}
    return row | {"p": one.get("p"), "p_holm": one.get("p_holm")}


def _forest(title: str, shown: list[Interval], higher: bool) -> Picture:
    worse = f"{'left' if higher else 'right'}: the control is worse"
    told = "; ".join(f"{one.name} {one.value:+z.4f}" for one in shown)
    return Picture(
        title,
        f"What each control changes in {title}, {worse}: {told}",
        lambda axis: forest(axis, shown, x=f"control − as it is ({worse})"),
        height=1.3 + 0.26 * len(shown),
    )


def _spans(title: str, rows: list[dict[str, Any]], as_it_is: float | None) -> list[Picture]:
    """How far back the state's memory is used: the value over K of ``frozen:K`` and ``reset:K``."""
    series = []
    for kind in ("reset", "frozen"):
        found = {}
        for row in rows:
            name, _, tokens = row["control"].partition(":")
            if name == kind and tokens.isdecimal() and row["value"] is not None:
                found[int(tokens)] = row["value"]
        if len(found) > 1:
            series.append(Line(kind, sorted(found), [found[tokens] for tokens in sorted(found)]))
    if not series:
        return []
    places = sorted({place for line in series for place in line.x})
    if as_it_is is not None:
        series.append(Line("as it is", places, [as_it_is] * len(places)))
    told = "; ".join(
        f"{line.name} {line.y[0]:.3f} at {line.x[0]:.0f} and {line.y[-1]:.3f} at {line.x[-1]:.0f}"
        for line in series
    )
    names = [line.name for line in series]
    return [
        Picture(
            f"{title}: memory span",
            f"{title} with the state reset every K tokens, or frozen after K: {told}",
            lambda axis: lines(axis, series, names, x="K tokens", y=label(title), log_x=True),
        )
    ]


def _difference(cell: Any) -> float | None:
    found = cell.get("difference") if isinstance(cell, Mapping) else None
    return None if found is None else float(found)


def _map(title: str, values: list[list[float | None]], metric: str) -> Picture:
    known = [
        (abs(value), layer, head, value)
        for layer, line in enumerate(values)
        for head, value in enumerate(line)
        if value is not None
    ]
    _, layer, head, most = max(known)
    return Picture(
        title,
        f"{title}, layers by heads; most changes without head {head} of layer {layer}: "
        f"{most:+z.4f}",
        lambda axis: heat_map(axis, values, colour=f"change in {metric}"),
    )
