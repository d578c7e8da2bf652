"""The figure that decides beside what each arm costs: size, work, memory, speed."""

from __future__ import annotations

from collections.abc import Mapping

from wuneng.report.figures import headline, higher_is_better
from wuneng.report.plots import cloud
from wuneng.report.records import Records
from wuneng.report.section import Picture, Section
from wuneng.report.setting import command
from wuneng.report.timed import TIMED, timed

__all__ = ["pareto"]

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


def pareto(records: Records) -> Section | None:
    """The figure that decides beside what it costs; an arm that none beats in both is marked."""
    name = headline(records)
    if name is None or len(records.arms) < 2:
        return None
    found = {arm: one.get("quality", {}).get(name) for arm, one in records.arms.items()}
    values = {arm: float(value) for arm, value in found.items() if value is not None}
    benched, used = timed(records), []
    rows, pictures = [], []
    for cost, unit in _UNITS.items():
        points = {}
        for arm, value in values.items():
            spent = records.arms[arm].get(cost)
            if cost in TIMED:
                spent = benched[cost].amounts.get(arm) if cost in benched else None
            if isinstance(spent, int | float):
                points[arm] = (float(spent), value)
        if len(points) < 2 or len({spent for spent, _ in points.values()}) < 2:
            continue
        best = {arm for arm in points if not _beaten(arm, points, cost, name)}
        for arm, (spent, value) in points.items():
            row = {"arm": arm, "figure": name, "value": value, "cost": cost, "amount": spent}
            rows.append(row | {"best": arm in best})
        used += [(unit, benched[cost])] if cost in benched else []
        pictures.append(_cloud(points, best, unit, name))
    if not rows:
        return None
    text = ["A ring marks the arms that no other beats in both."]
    text += [f"{unit[0].upper()}{unit[1:]}: {one.where}." for unit, one in used]
    commands = dict.fromkeys([command(records), *(one.command for _, one in used)])
    made_by = "; ".join(filter(None, commands))
    title = "Quality beside its cost"
    return Section("pareto", title, tuple(text), tuple(rows), tuple(pictures), command=made_by)


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
