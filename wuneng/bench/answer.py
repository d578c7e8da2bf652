"""What a benchmark found, in sentences and one table: how fast beside attention at each length.

The noise behind a figure is what ``wuneng bench --compare`` would call no change: about three and
a half standard errors of the median of the rounds' own ratios, and what differs between any two
processes. A ratio within its noise of 1 is neither faster nor slower.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from wuneng.bench.compare import ratio_noise
from wuneng.bench.record import Row, rows_of
from wuneng.bench.tables import machine_line, record_tables, short_length
from wuneng.tables import Column, Table

__all__ = ["answer_table", "report", "sentences"]

_KINDS = ("train", "prefill", "decode", "ops")
#: Arms of ``ops`` that are WuNeng's own. Of the cross-head fusion nothing stands beside it.
_OWN_OPERATORS = ("triton", "native", "chunked", "reference")
_ABSENT = ("missing", "unsupported", "skipped")
#: A part of a step below this share is not told in a sentence.
_SMALL_SHARE = 0.01


def report(record: dict[str, Any], *, verbose: bool = False) -> Iterator[str | Table]:
    """What a terminal shows: the answer, with ``verbose`` every table, where it was measured."""
    yield from sentences(record)
    if record["rows"]:
        yield answer_table(record)
    if verbose:
        yield from record_tables(record)
        for name, version in record["peers"].items():
            yield f"{name}: {version}"
    yield machine_line(record)
    if took := record.get("took"):
        yield _where_time_went(took)


def _where_time_went(took: dict[str, float]) -> str:
    """``took 150 s: checks 80 s, ...``: what --seconds is about, and what it is not."""
    parts = {name.replace("_", "-"): took[name] for name in took if name != "in_all"}
    told = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in parts.items())
    rest = took["in_all"] - sum(parts.values())
    return f"took {took['in_all']:.0f} s: {told}, the machine's rates and the rest {rest:.0f} s"


def sentences(record: dict[str, Any]) -> Iterator[str]:
    """One for each kind of case and batch: faster or slower than attention, and where."""
    rows = rows_of(record)
    batches = {row.batch for row in rows}
    for group in _groups(rows):
        where = _name(group[0]) + (f", batch {group[0].batch}" if len(batches) > 1 else "")
        yield from (f"{where}: {sentence}" for sentence in _told(group, record))
    if {row.what for row in rows} - {"ops"} and "mha" not in record["models"]:
        why = record.get("left_out", {}).get("mha", "it is not among the arms (--against)")
        yield f"There is no ratio to mha: {why}."
    yield from _part_sentences(record["parts"])


def answer_table(record: dict[str, Any]) -> Table:
    """Speed as a multiple of attention's at each length; where nothing stands beside, the time."""
    rows = rows_of(record)
    lengths = sorted({row.seq_len for row in rows})
    several = len({row.batch for row in rows}) > 1
    names = ["", *(["batch"] if several else []), "arm"]
    columns = [Column(name, name=True) for name in names]
    columns += [Column(short_length(length)) for length in lengths]
    beside = any(row.speed_ratio for row in rows)
    title = "times the speed of attention (mha, sdpa), ± noise" if beside else "time of a call"
    table = Table(title, columns)
    absent: dict[str, None] = {}
    for group in _groups(list(_shown(rows, record))):
        heading = [_name(group[0]), *([str(group[0].batch)] if several else [])]
        for arm, members in _by_arm(group, _yardstick(group)):
            if all(row.status in _ABSENT for row in members):
                absent |= dict.fromkeys(f"{arm} {row.status}: {row.note}" for row in members)
                continue
            cells = {row.seq_len: _cell(row) for row in members}
            table.add_row(*heading, arm, *(cells.get(length, "") for length in lengths))
            heading = [""] * len(heading)
        if table.rows:
            table.add_section()
    table.caption = "\n".join(absent) or None
    return table


def _shown(rows: Sequence[Row], record: dict[str, Any]) -> Iterator[Row]:
    """Without WuNeng's slower operators where a fast one is told beside attention, and without
    the fusion, which attention does not stand beside, unless it is alone: --verbose shows them."""
    for group in _groups(rows):
        told = _told_arm(group, record, _yardstick(group)) if _yardstick(group) else None
        if group[0].operation == "fusion" and len({_name(row) for row in rows}) > 1:
            continue
        hidden = set(_OWN_OPERATORS) - {told} if told and group[0].what == "ops" else set()
        yield from (row for row in group if row.arm not in hidden)


def _groups(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Rows that differ in arm and length, in the order in which they are told."""

    def key(row: Row) -> tuple[int, str, int]:
        return _KINDS.index(row.what), row.operation, row.batch

    for _, members in groupby(sorted(rows, key=key), key=key):
        yield list(members)


def _by_arm(group: Sequence[Row], first: str | None) -> Iterator[tuple[str, list[Row]]]:
    """Rows of each arm by length; attention's first, whose own cells are times."""
    arms = sorted(dict.fromkeys(row.arm for row in group), key=lambda arm: arm != first)
    for arm in arms:
        yield arm, sorted((r for r in group if r.arm == arm), key=lambda row: row.seq_len)


def _name(row: Row) -> str:
    return f"ops, {row.operation.replace('+', ' + ')}" if row.what == "ops" else row.what


def _yardstick(group: Sequence[Row]) -> str | None:
    return next((row.speed_ratio_against for row in group if row.speed_ratio_against), None)


def _cell(row: Row) -> str:
    if row.median_ms is None:
        return row.status
    if row.speed_ratio is None or row.arm == row.speed_ratio_against:
        return f"{row.median_ms:,.3g} ms" if row.median_ms < 100 else f"{row.median_ms:,.0f} ms"
    return _ratio(row)


def _ratio(row: Row) -> str:
    ratio = row.speed_ratio or 0.0
    digits = 2 if ratio < 10 else 1
    return f"{ratio:.{digits}f} ± {ratio_noise(row):.{digits}f}"


def _told(group: Sequence[Row], record: dict[str, Any]) -> Iterator[str]:
    """First the model, or the fastest of WuNeng's own operators; then whatever else was timed."""
    yardstick = _yardstick(group)
    first = _told_arm(group, record, yardstick)
    timed = dict.fromkeys(row.arm for row in group if row.speed_ratio is not None)
    others = [arm for arm in timed if arm not in (first, yardstick, *_OWN_OPERATORS)]
    for arm in (*filter(None, [first]), *others):
        if (sentence := _sentence(arm, group, yardstick)) is not None:
            yield sentence


def _sentence(arm: str, group: Sequence[Row], yardstick: str | None) -> str | None:
    own = sorted((row for row in group if row.arm == arm), key=lambda row: row.seq_len)
    told = [row for row in own if row.speed_ratio is not None]
    rest = _without_ratio(own, group, yardstick or _attention(group))
    if not told:
        return f"{arm} has no figure beside attention{rest}." if rest else None
    text = f"{arm} is {_verdicts(told, len(own), str(yardstick))}"
    first, last = told[0], told[-1]
    text += f": {_ratio(first)} times its speed at {short_length(first.seq_len)} tokens"
    if last is not first:
        text += f", {_ratio(last)} at {short_length(last.seq_len)}"
    return text + rest + "."


def _told_arm(group: Sequence[Row], record: dict[str, Any], yardstick: str | None) -> str | None:
    if group[0].what != "ops":
        arms = [arm for arm in record["models"] if arm != (yardstick or "mha")]
        return arms[0] if arms else None
    own = [row for row in group if row.arm in _OWN_OPERATORS]
    measured = [row for row in own if row.speed_ratio is not None]
    # whatever their order at short lengths, it is the long ones that take the time
    best = max(measured, key=lambda row: (row.seq_len, row.speed_ratio or 0.0), default=None)
    return best.arm if best else next((row.arm for row in own if row.status not in _ABSENT), None)


def _attention(group: Sequence[Row]) -> str | None:
    return next((row.arm for row in group if row.arm in ("mha", "sdpa")), None)


def _verdicts(told: Sequence[Row], lengths: int, yardstick: str) -> str:
    """``slower than mha at 1k, level with it within noise at 2k``."""
    parts: list[str] = []
    for verdict, members in groupby(told, key=_verdict):
        rows = list(members)
        where = "at every length" if len(rows) == lengths > 1 else _at(rows)
        parts.append(f"{verdict.format('it' if parts else yardstick)} {where}")
    return ", ".join(parts)


def _verdict(row: Row) -> str:
    ratio = row.speed_ratio or 0.0
    if abs(ratio - 1) <= ratio_noise(row):
        return "level with {} within noise"
    return "faster than {}" if ratio > 1 else "slower than {}"


def _without_ratio(own: Sequence[Row], group: Sequence[Row], yardstick: str | None) -> str:
    """What became of the lengths that have no ratio: memory that one of the two lacked."""
    found = ""
    beside = {row.seq_len: row for row in group if row.arm == yardstick}
    lacking = [row for row in own if row.speed_ratio is None]

    def cause(row: Row) -> str:
        other = beside.get(row.seq_len)
        culprit = row if row.status != "ok" or other is None else other
        if culprit.status == "ok":
            return "timed alone" if row.note or (other and other.note) else ""
        return f"{culprit.arm} {culprit.status}"

    for why, members in groupby(lacking, key=cause):
        if why:
            found += f"; {_at(list(members))}: {why}"
    return found


def _at(rows: Sequence[Row]) -> str:
    return "at " + _joined([short_length(row.seq_len) for row in rows])


def _joined(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _part_sentences(parts: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Where the time goes at the greatest length, for each arm; other lengths are in a table."""
    longest = max((part["seq_len"] for part in parts), default=0)

    def series(part: dict[str, Any]) -> tuple[str, str]:
        return part.get("what", "train"), part["arm"]

    at_longest = [part for part in parts if part["seq_len"] == longest]
    for (what, arm), members in groupby(at_longest, key=series):
        ordered = sorted(members, key=lambda part: -part["share"])
        shares = [f"{p['part']} {p['share']:.0%}" for p in ordered if p["share"] >= _SMALL_SHARE]
        step = "a decoded token" if what == "decode" else "a training step"
        yield f"{arm}, {step} at {short_length(longest)} tokens: {', '.join(shares)}."
