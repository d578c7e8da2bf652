"""The figure that decides beside what each arm costs: size, work, memory, speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from wuneng.report.figures import headline, higher_is_better
from wuneng.report.plots import cloud
from wuneng.report.records import Records
from wuneng.report.section import Picture, Section

__all__ = ["pareto", "with_measured"]

_UNITS = {
    "parameters": "parameters",
    "training_flops": "training FLOPs",
    "seconds": "training time, s",
    "tokens_per_second": "training tokens per second",
    "peak_bytes": "peak memory of a training step, MiB",
    "state_bytes": "bytes of state per sequence",
    "cache_bytes": "bytes of cache per sequence",
    "decoded_per_second": "decoded tokens per second",
    "first_token_ms": "time to the first token, ms",
}
_MORE_IS_BETTER = ("tokens_per_second", "decoded_per_second")
#: What a benchmark says of an arm: in which of its parts, and by which key of a row.
_BENCHED = {
    "peak_bytes": ("train", "peak_bytes"),
    "decoded_per_second": ("decode", "tokens_per_second"),
    "first_token_ms": ("prefill", "median_ms"),
}


def with_measured(records: Sequence[Records]) -> list[Records]:
    """Runs that have no benchmark of their own with another directory's of the same models: arms
    of the same names with as many parameters each."""
    benches = [one.bench for one in records if one.bench is not None]
    found = []
    for one in records:
        lent = next((bench for bench in benches if _is_of(bench, one)), None)
        found.append(one if one.bench is not None else replace(one, measured=lent))
    return found


def _is_of(bench: Mapping[str, Any], records: Records) -> bool:
    models = bench.get("models")
    if not isinstance(models, Mapping):
        return False
    shared = [name for name in records.arms if name in models]
    sizes = [
        (models[name].get("parameters"), records.arms[name].get("parameters")) for name in shared
    ]
    return len(shared) > 1 and all(theirs == ours for theirs, ours in sizes)


def pareto(records: Records) -> Section | None:
    """The figure that decides beside what it costs; an arm that none beats in both is marked."""
    name = headline(records)
    if name is None or len(records.arms) < 2:
        return None
    found = {arm: one.get("quality", {}).get(name) for arm, one in records.arms.items()}
    values = {arm: float(value) for arm, value in found.items() if value is not None}
    timed = _benched(records.bench or records.measured or {})
    rows, pictures = [], []
    for cost, unit in _UNITS.items():
        points = {}
        for arm, value in values.items():
            spent = timed[cost].get(arm) if cost in timed else records.arms[arm].get(cost)
            if isinstance(spent, int | float):
                points[arm] = (float(spent), value)
        if len(points) < 2 or len({spent for spent, _ in points.values()}) < 2:
            continue
        best = {arm for arm in points if not _beaten(arm, points, cost, name)}
        for arm, (spent, value) in points.items():
            row = {"arm": arm, "figure": name, "value": value, "cost": cost, "amount": spent}
            rows.append(row | {"best": arm in best})
        pictures.append(_cloud(points, best, unit, name))
    if not rows:
        return None
    text = ("A ring marks the arms that no other beats in both.",)
    return Section("pareto", "Quality beside its cost", text, tuple(rows), tuple(pictures))


def _cloud(
    points: Mapping[str, tuple[float, float]], best: set[str], unit: str, name: str
) -> Picture:
    shown = points
    if unit.endswith("MiB"):
        shown = {arm: (spent / 2**20, value) for arm, (spent, value) in points.items()}
    told = ", ".join(f"{arm} {value:.3f} at {spent:.4g}" for arm, (spent, value) in shown.items())
    return Picture(
        f"{name} beside {unit}",
        f"{name} against {unit}: {told}. Beaten by none in both: {', '.join(sorted(best))}",
        lambda axis: cloud(axis, shown, best, x=unit, y=name),
    )


def _beaten(arm: str, points: Mapping[str, tuple[float, float]], cost: str, name: str) -> bool:
    def better(one: float, other: float, more: bool) -> bool:
        return one > other if more else one < other

    spent, value = points[arm]
    cheap, good = cost in _MORE_IS_BETTER, higher_is_better(name)
    return any(
        not better(spent, other[0], cheap)
        and not better(value, other[1], good)
        and other != (spent, value)
        for other in points.values()
    )


def _benched(bench: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """By cost and arm, at the longest length and the smallest batch that the benchmark has."""
    found = {}
    for cost, (what, key) in _BENCHED.items():
        rows = [row for row in bench.get("rows", ()) if row.get("what") == what and row.get(key)]
        place = min(((-row["seq_len"], row["batch"]) for row in rows), default=None)
        found[cost] = {
            row["arm"]: float(row[key]) for row in rows if (-row["seq_len"], row["batch"]) == place
        }
    return found
