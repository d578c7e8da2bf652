"""What benchmarks say of a run's arms: its own, and other directories' of the same models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wuneng.report.records import Records
from wuneng.report.setting import command_of

__all__ = ["TIMED", "Timed", "timed", "with_benchmarks"]

#: What is read of an arm, from which part of a benchmark, by which key of a row.
TIMED = {
    "peak_bytes": ("train", "peak_bytes"),
    "decoded_per_second": ("decode", "tokens_per_second"),
    "first_token_ms": ("prefill", "median_ms"),
}


@dataclass(frozen=True)
class Timed:
    """Attributes:
    amounts: by arm.
    where: the benchmark's directory, length, batch and dtype, in words.
    command: made the benchmark; empty where it was not recorded.
    """

    amounts: Mapping[str, float]
    where: str
    command: str


def with_benchmarks(records: Sequence[Records]) -> list[Records]:
    """Each with the benchmarks of the others that are of its models: arms of the same names with as
    many parameters each, two of them at least."""
    benches = [(one.name, one.bench) for one in records if one.bench is not None]
    return [
        replace(one, lent=tuple(bench for bench in benches if _is_of(bench[1], one)))
        for one in records
    ]


def _is_of(bench: Mapping[str, Any], records: Records) -> bool:
    if bench is records.bench:
        return False
    models, arms = _sizes(bench.get("models")), _sizes(records.arms)
    shared = models.keys() & arms.keys()
    return len(shared) > 1 and all(models[name] == arms[name] for name in shared)


def _sizes(arms: Any) -> dict[str, int]:
    """Parameters by arm, of those that say."""
    found = {
        name: one.get("parameters")
        for name, one in (arms.items() if isinstance(arms, Mapping) else ())
        if isinstance(one, Mapping)
    }
    return {name: size for name, size in found.items() if isinstance(size, int)}


def timed(records: Records) -> dict[str, Timed]:
    """By cost, of the first benchmark that has it for two arms, the run's own before others'."""
    own = () if records.bench is None else ((records.name, records.bench),)
    found: dict[str, Timed] = {}
    for name, bench in (*own, *records.lent):
        for cost in TIMED:
            if cost not in found and (one := _timed(cost, name, bench, set(records.arms))):
                found[cost] = one
    return found


def _timed(cost: str, name: str, bench: Mapping[str, Any], arms: set[str]) -> Timed | None:
    """Where most arms were timed: there at the longest length, and at the smallest batch."""
    places: dict[tuple[int, int, str], dict[str, float]] = {}
    for arm, place, amount in _rows(cost, bench):
        if arm in arms:
            places.setdefault(place, {})[arm] = amount
    if not places:
        return None
    length, batch, dtype = max(places, key=lambda at: (len(places[at]), at[0], -at[1]))
    amounts = places[length, batch, dtype]
    if len(amounts) < 2:
        return None
    where = f"{name}, {length:,} tokens, batch {batch}, {dtype}"
    return Timed(amounts, where, command_of(bench))


def _rows(cost: str, bench: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, int, str], float]]:
    """Arm, (length, batch, dtype) and amount of each row that has them all."""
    what, key = TIMED[cost]
    rows = bench.get("rows")
    for row in rows if isinstance(rows, list) else ():
        if not isinstance(row, Mapping) or row.get("what") != what:
            continue
        length, batch, amount = row.get("seq_len"), row.get("batch"), row.get(key)
        if isinstance(length, int) and isinstance(batch, int) and isinstance(amount, int | float):
            yield str(row.get("arm")), (length, batch, str(row.get("dtype"))), float(amount)
