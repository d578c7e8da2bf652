"""What a terminal shows of a record and of a comparison."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from wuneng.bench.compare import Comparison
from wuneng.bench.record import Row, rows_of
from wuneng.tables import Column, Table

__all__ = ["comparison_table", "machine_line", "record_tables", "short_bytes", "short_length"]

_ELSEWHERE = "bench.json"
_TITLES = {
    "prefill": "prefill: from a prompt to its first token",
    "decode": "decode: one more token after a context",
    "train": "train: one optimiser step",
}


def record_tables(record: dict[str, Any]) -> Iterator[Table]:
    """A table for each kind of case, then exponents and, if measured, the parts of a step."""
    rows = rows_of(record)
    for (what, operation), members in groupby(
        sorted(rows, key=_order), key=lambda row: (row.what, row.operation)
    ):
        title = _TITLES.get(what, f"{what}: {operation}")
        yield _case_table(title, list(members))
    if record["exponents"]:
        yield _exponent_table(record["exponents"])
    if record["parts"]:
        yield _parts_table(record["parts"])


def _order(row: Row) -> tuple[int, str, int, int]:
    kinds = ("ops", "prefill", "decode", "train")
    return kinds.index(row.what), row.operation, row.batch, row.seq_len


def _case_table(title: str, rows: list[Row]) -> Table:
    has_cache = any(row.cache_bytes is not None for row in rows)
    yardstick = next((r.speed_ratio_against for r in rows if r.speed_ratio_against), None)
    against = f"of {yardstick}'s speed" if yardstick else ""
    columns = [
        Column("length", name=True),
        Column("batch", name=True),
        Column("arm", name=True),
        Column("ms"),
        Column("spread", spare=True),
        Column("tokens/s"),
        Column(against),
        Column("peak memory", spare=True),
        *([Column("cache (KV + state)", spare=True)] if has_cache else []),
        Column("of the roof", spare=True),
    ]
    table = Table(title, columns, elsewhere=_ELSEWHERE)
    for _, members in groupby(rows, key=lambda row: (row.batch, row.seq_len)):
        group = list(members)
        for index, row in enumerate(group):
            shape = (short_length(row.seq_len), str(row.batch)) if index == 0 else ("", "")
            table.add_row(*shape, row.arm, *_cells(row, has_cache))
        table.add_section()
    reasons = dict.fromkeys(
        f"{row.arm} {row.status}: {row.note}"
        for row in rows
        if row.status in ("missing", "unsupported", "skipped")
    )
    table.caption = "\n".join(reasons) or None
    return table


def _cells(row: Row, has_cache: bool) -> list[str]:
    if row.median_ms is None or row.tokens_per_second is None or row.spread_ms is None:
        needed = f" ({short_bytes(row.needed_bytes)} needed)" if row.needed_bytes else ""
        return [row.status + needed]
    cells = [
        _milliseconds(row.median_ms),
        f"± {100 * row.spread_ms / row.median_ms / 2:.0f} %",
        f"{row.tokens_per_second:,.0f}",
        _ratio(row),
        short_bytes(row.peak_bytes),
    ]
    if has_cache:
        parts = (row.kv_bytes, row.state_bytes)
        cells.append("" if parts[0] is None else " + ".join(short_bytes(p) for p in parts))
    roof = "" if row.roofline_share is None else f"{row.roofline_share:.0%} ({row.bound})"
    return [*cells, roof]


def _milliseconds(value: float) -> str:
    """Three digits, without a power of ten for long times."""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _ratio(row: Row) -> str:
    if row.speed_ratio is None or row.speed_ratio_spread is None:
        return ""
    if row.arm == row.speed_ratio_against:
        return "1"
    return f"{row.speed_ratio:.2f} ± {row.speed_ratio_spread / 2:.2f}"


def _exponent_table(exponents: list[dict[str, Any]]) -> Table:
    table = Table(
        "growth with length, the power of T (in brackets: the last two lengths)",
        [*(Column(name, name=True) for name in ("what", "arm", "batch")), *_columns("time memory")],
    )

    def series(entry: dict[str, Any]) -> tuple[Any, ...]:
        kinds = ("ops", "prefill", "decode", "train")
        return kinds.index(entry["what"]), entry["operation"], entry["batch"], entry["arm"]

    for (_, operation, batch, arm), members in groupby(sorted(exponents, key=series), key=series):
        by_quantity = {entry["quantity"]: entry for entry in members}
        what = next(iter(by_quantity.values()))["what"]
        name = f"{what}: {operation}" if what == "ops" else what
        table.add_row(
            name, arm, str(batch), *(_slope(by_quantity.get(q)) for q in ("time", "memory"))
        )
    return table


def _columns(headings: str) -> list[Column]:
    return [Column(heading) for heading in headings.split()]


def _slope(entry: dict[str, Any] | None) -> str:
    return "" if entry is None else f"{entry['exponent']:.2f} ({entry['last_exponent']:.2f})"


def _parts_table(parts: list[dict[str, Any]]) -> Table:
    names = [Column(name, name=True) for name in ("what", "length", "arm", "part")]
    figures = [Column(name) for name in ("forward ms", "backward ms", "share")]
    table = Table(
        "where the time goes (profiled)",
        [*names, *figures, Column("operations", spare=True)],
        elsewhere=_ELSEWHERE,
    )

    def group(part: dict[str, Any]) -> tuple[Any, ...]:
        return part.get("what", "train"), part["seq_len"], part["arm"]

    for (what, length, arm), members in groupby(parts, key=group):
        for index, part in enumerate(sorted(members, key=lambda part: -part["share"])):
            where = (what, short_length(length), arm) if index == 0 else ("", "", "")
            times = (f"{part['forward_ms']:,.1f}", f"{part['backward_ms']:,.1f}")
            count = f"{part.get('operations', 0):,}"
            table.add_row(*where, part["part"], *times, f"{part['share']:.0%}", count)
        table.add_section()
    return table


def machine_line(record: dict[str, Any]) -> str:
    """Where it was measured, in one line."""
    machine, environment = record["machine"], record["environment"]
    rates = machine["rates"]
    load = (machine.get("load_average") or {}).get("start")
    name = machine.get("accelerator") or environment.get("processor", machine["device"])
    return (
        f"{name}, {machine['threads']} threads, {machine['dtype']}: copies "
        f"{rates['bandwidth_bytes_per_second'] / 1e9:.1f} GB/s, multiplies "
        f"{rates['matmul_flops'] / 1e9:,.0f} GFLOP/s"
        + (f"; load average at the start {load[0]}" if load else "")
    )


def comparison_table(comparison: Comparison, *, every: bool = True) -> Table:
    """Every common figure, or those alone that changed beyond noise."""
    names = [Column(name, name=True) for name in ("what", "length", "batch", "arm", "figure")]
    table = Table("against the earlier record", [*names, *_columns("before now change noise")])
    for change in comparison.changes:
        if change.verdict == "none" and not every:
            continue
        row = change.row
        what = f"{row.what}: {row.operation}" if row.what == "ops" else row.what
        case = (what, short_length(row.seq_len), str(row.batch), row.arm, change.quantity)
        if change.quantity == "status":
            table.add_row(*case, "ok", row.status, "worse", "")
            continue
        show = (
            short_bytes if change.quantity == "memory" else (lambda ms: f"{_milliseconds(ms)} ms")
        )
        verdict = "none" if change.verdict == "none" else f"{change.relative:+z.0%}"
        table.add_row(*case, show(change.old), show(change.new), verdict, f"± {change.allowed:.0%}")
    return table


def short_length(tokens: int) -> str:
    """8192 as ``8k``."""
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else str(tokens)


def short_bytes(count: float | None) -> str:
    """1536 as ``1.5 KiB``."""
    if count is None:
        return ""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
