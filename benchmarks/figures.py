"""The tables of docs/performance.md, written from the records beside this file.

    python -m benchmarks.figures           rewrite the tables
    python -m benchmarks.figures --check   exit 1 if a table is not what its record says

A table stands between ``<!-- table: NAME KIND -->`` and ``<!-- end -->``; NAME is a directory here
with a bench.json and KIND is ops, prefill, decode, train, exponents, parts, machine or changes
(against the record that it repeats); or NAME is startup.json and KIND commands, wkv7_cpu.json and
scan, eval_overhead.json and evaluation, training_step.json and before, that or prefill.json and
steps, decoded_compiled.json and tokens, kept_for_backward.json and kept.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wuneng.bench.compare import compare_records
from wuneng.bench.record import Row, read_record, rows_of
from wuneng.bench.tables import machine_line, short_bytes, short_length
from wuneng.records import read_json

HERE = Path(__file__).resolve().parent
DOCUMENT = HERE.parent / "docs" / "performance.md"
_BLOCK = re.compile(r"(<!-- table: (\S+) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
REPEATED = "cpu-inference"
AWAITED = "Not measured yet.\n"


def main() -> int:
    """Rewrite or check; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    old = DOCUMENT.read_text(encoding="utf-8")
    new = _BLOCK.sub(lambda m: m[1] + table(m[2], m[3]) + m[4], old)
    if options.check:
        return int(old != new)
    DOCUMENT.write_text(new, encoding="utf-8")
    return 0


def table(name: str, kind: str) -> str:
    """One block's Markdown."""
    place = HERE / name
    files = {
        "commands": _commands,
        "scan": _scan,
        "evaluation": _evaluation,
        "steps": _steps,
        "before": _before,
        "tokens": _tokens,
        "kept": _kept,
    }
    if kind in files:
        return "\n".join(files[kind](place)) + "\n" if place.is_file() else AWAITED
    if not (place / "bench.json").is_file():
        return AWAITED
    record = read_record(place)
    if kind == "machine":
        return machine_line(record) + "\n"
    if kind == "changes":
        return _changes(record)
    lines = {"exponents": _exponents, "parts": _parts}.get(kind, lambda r: _cases(r, kind))(record)
    return "\n".join(lines) + "\n"


def _cases(record: dict[str, Any], what: str) -> Iterator[str]:
    rows = [row for row in rows_of(record) if row.what == what]
    against = next((r.speed_ratio_against for r in rows if r.speed_ratio_against), "-")
    yield (
        f"| operation | tokens | batch | arm | ms | ± | tokens/s | of {against}'s speed "
        "| peak memory | of the roof |"
    )
    yield "|---|---:|---:|---|---:|---:|---:|---:|---:|---:|"
    for row in rows:
        shape = f"| {row.operation} | {short_length(row.seq_len)} | {row.batch} | {row.arm} "
        yield shape + _figures(row)


def _figures(row: Row) -> str:
    if row.median_ms is None or row.tokens_per_second is None or row.roofline_share is None:
        return f"| {row.status}: {row.note} | | | | | |"
    ratio = "" if row.speed_ratio is None else f"{row.speed_ratio:.2f}"
    if row.speed_ratio_spread:
        ratio += f" ± {row.speed_ratio_spread / 2:.2f}"
    spread = (row.spread_ms or 0.0) / row.median_ms / 2
    return (
        f"| {row.median_ms:,.4g} | {spread:.0%} | {row.tokens_per_second:,.0f} | {ratio} "
        f"| {short_bytes(row.peak_bytes)} | {row.roofline_share:.0%} ({row.bound}) |"
    )


def _exponents(record: dict[str, Any]) -> Iterator[str]:
    yield "| what | arm | quantity | exponent | last two lengths |"
    yield "|---|---|---|---:|---:|"
    for entry in record["exponents"]:
        what = entry["what"]
        name = f"{what}: {entry['operation']}" if what == "ops" else what
        yield (
            f"| {name} | {entry['arm']} | {entry['quantity']} | {entry['exponent']:.2f} "
            f"| {entry['last_exponent']:.2f} |"
        )


def _parts(record: dict[str, Any]) -> Iterator[str]:
    yield "| what | tokens | arm | part | forward ms | backward ms | share | operations |"
    yield "|---|---:|---|---|---:|---:|---:|---:|"
    shown = [part for part in record["parts"] if part["share"] >= 0.005]
    shown.sort(key=lambda p: (p["what"], p["seq_len"], p["arm"], -p["share"]))
    for part in shown:
        yield (
            f"| {part['what']} | {short_length(part['seq_len'])} | {part['arm']} | {part['part']} "
            f"| {part['forward_ms']:,.1f} | {part['backward_ms']:,.1f} | {part['share']:.0%} "
            f"| {part['operations']:,} |"
        )


def _changes(record: dict[str, Any]) -> str:
    """What a repetition found against the record that it repeats."""
    comparison = compare_records(read_record(HERE / REPEATED), record)
    times = [change for change in comparison.changes if change.quantity == "time"]
    largest = max(times, key=lambda change: abs(change.relative))
    return (
        f"{len(comparison.changes)} figures, {len(comparison.worse())} worse beyond noise. The "
        f"machine's own rates moved by {comparison.machine_drift:.0%}; the largest change of a "
        f"time was {largest.relative:+.0%}, where {largest.allowed:.0%} counts as none.\n"
    )


def _commands(path: Path) -> Iterator[str]:
    record = read_json(path)
    load = record["load_average"]["start"]
    yield f"Load average at the start: {load[0] if load else 'unknown'}."
    yield ""
    yield "| command | median s | best s | samples |"
    yield "|---|---:|---:|---:|"
    for name, figures in record["commands"].items():
        yield (
            f"| `{name}` | {figures['median_seconds']:.2f} | {figures['best_seconds']:.2f} "
            f"| {figures['samples']} |"
        )


def _scan(path: Path) -> Iterator[str]:
    """WKV-7 beside SDPA and the token loops: medians, and speeds as the rounds' own ratios."""
    record = read_json(path)
    arms = list(dict.fromkeys(row["arm"] for row in record["rows"]))
    fastest = arms[0]
    load = record["environment"]["load_average_before"][0]
    yield f"Load average at the start: {load:.2f}."
    yield ""
    yield f"| batch | tokens | heads | | {' | '.join(f'{a}, ms' for a in arms)} | {fastest} is |"
    yield "|---:|---:|---:|---|" + "---:|" * len(arms) + "---|"
    shapes: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in record["rows"]:
        key = row["batch"], row["seq_len"], row["heads"], row["what"]
        shapes.setdefault(key, {})[row["arm"]] = row
    for (batch, tokens, heads, what), rows in shapes.items():
        times = [f"{rows[arm]['median_ms']:,.4g}" if arm in rows else "" for arm in arms]
        speeds = (f"{rows[arm]['ratio_to_fastest']:.2f} × {arm}" for arm in arms[1:] if arm in rows)
        cells = (batch, short_length(tokens), heads, what, *times, ", ".join(speeds))
        yield f"| {' | '.join(map(str, cells))} |"
    yield ""
    slopes = (f"{name} {slope:.2f}" for name, slope in record["exponents"].items())
    yield f"Growth with the length at B = 1 (exponent): {', '.join(slopes)}."


def _steps(path: Path) -> Iterator[str]:
    record = read_json(path)
    yield f"Load average at the start: {record['load_average'][0]:.2f}."
    yield ""
    yield "| batch | tokens | arm | ms | fastest | of mha's speed | peak memory | of mha's |"
    yield "|---:|---:|---|---:|---:|---:|---:|---:|"
    for shape in record["shapes"]:
        for row in shape["rows"]:
            yield (
                f"| {shape['batch']} | {short_length(shape['tokens'])} | {row['arm']} "
                f"| {row['milliseconds']:,.0f} | {row['fastest_milliseconds']:,.0f} "
                f"| {row['of_mha']:.2f} | {short_bytes(row['peak_bytes'])} "
                f"| {row['peak_of_mha']:.2f} |"
            )


def _before(path: Path) -> Iterator[str]:
    """The fastest step, which a busy machine disturbs least, beside an earlier commit's."""
    record = read_json(path)
    if "before" not in record:
        yield AWAITED.strip()
        return
    earlier = {(s["batch"], s["tokens"]): s for s in record["before"]["shapes"]}
    yield f"Before: commit {record['before']['git_commit'][:7]}."
    yield ""
    yield "| batch | tokens | arm | tokens/s | of mha | peak memory |"
    yield "|---:|---:|---|---:|---:|---:|"
    for shape in record["shapes"]:
        batch, tokens = shape["batch"], shape["tokens"]
        old = {row["arm"]: row for row in earlier[batch, tokens]["rows"]}
        for row in shape["rows"]:
            pair = old[row["arm"]], row
            cells = (
                [f"{1e3 * batch * tokens / r['fastest_milliseconds']:,.0f}" for r in pair],
                [f"{r['of_mha']:.2f}" for r in pair],
                [f"{r['peak_bytes'] / 2**20:,.0f}" for r in pair],
            )
            shown = " | ".join(" → ".join(cell) for cell in cells)
            yield f"| {batch} | {short_length(tokens)} | {row['arm']} | {shown} MiB |"


def _kept(path: Path) -> Iterator[str]:
    arms: dict[str, dict[str, int]] = read_json(path)["arms"]
    totals = {arm: sum(parts.values()) for arm, parts in arms.items()}
    yield f"| MiB, by part | {' | '.join(arms)} |"
    yield "|---|" + "---:|" * len(arms)
    for part in dict.fromkeys(part for parts in arms.values() for part in parts):
        cells = [f"{x / 2**20:.1f}" if (x := arms[arm].get(part, 0)) else "" for arm in arms]
        yield f"| {' | '.join([part, *cells])} |"
    cells = [f"{x / 2**20:.1f} ({x / totals['mha']:.2f} of mha)" for x in totals.values()]
    yield f"| {' | '.join(['all', *cells])} |"


def _tokens(path: Path) -> Iterator[str]:
    record = read_json(path)
    yield f"Load average at the start: {record['load_average'][0]:.2f}."
    yield ""
    yield (
        "| width, layers | arm | way | ms | fastest | tokens/s | of the modules' speed "
        "| of mha | of the roof | compiling, s |"
    )
    yield "|---|---|---|---:|---:|---:|---:|---:|---:|---:|"
    for model in record["models"]:
        for row in model["rows"]:
            seconds = row.get("compile_seconds")
            yield (
                f"| {model['width']}, {model['layers']} | {row['arm']} | {row['way']} "
                f"| {row['milliseconds']:.1f} | {row['fastest_milliseconds']:.1f} "
                f"| {row['tokens_per_second']:.1f} | {row['gained']:.2f} | {row['of_mha']:.2f} "
                f"| {row['roof']:.0%} | {'' if seconds is None else f'{seconds:.0f}'} |"
            )


def _evaluation(path: Path) -> Iterator[str]:
    record = read_json(path)
    start = record["load_average"]["start"]
    yield f"Load average at the start: {start[0]:.2f}."
    yield ""
    yield (
        "| arm | tokens, unshared → shared | bare shared, s | eval | bare unshared | lm-eval "
        "| eval of bare shared | eval of bare unshared | eval of lm-eval |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for name, arm in record["arms"].items():
        tokens, seconds, ratios = arm["tokens"], arm["processor_seconds"], arm["ratios"]
        timed = (seconds[k] for k in ("bare shared", "eval", "bare unshared", "lm-eval"))
        of = (ratios[f"eval / {k}"] for k in ("bare shared", "bare unshared", "lm-eval"))
        yield (
            f"| {name} | {tokens['unshared']:,} → {tokens['shared']:,} "
            f"| {' | '.join(f'{x:.1f}' for x in timed)} | {' | '.join(f'{x:.2f}' for x in of)} |"
        )


if __name__ == "__main__":
    sys.exit(main())
