"""Two records of the same cases: what became slower or larger, beyond noise.

Noise of a median, from the interquartile range q of its n samples, as a fraction of the median m:

    noise = 3.2 (1 + 3 / n) q / (m sqrt(n))

about three and a half standard errors (a median's is 1.25 sigma / sqrt(n), and q is 1.35 sigma),
widened where few samples say little about their own spread. The noises of both records add in
squares. To that comes what the machine itself did: the change of its measured copy bandwidth or
matmul rate between the records and within each, and 3 % that differ between any two processes.
A smaller change is called none. Peak memory is counted, not timed; 1 % of it is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wuneng.bench.record import Row, identity, rows_of

__all__ = ["Change", "Comparison", "compare_records", "ratio_noise"]

PROCESS_NOISE = 0.03
MEMORY_NOISE = 0.01


@dataclass(frozen=True)
class Change:
    """One quantity of one case."""

    row: Row
    quantity: str
    """``time``, ``memory`` or ``status``."""
    old: float
    new: float
    allowed: float
    """Relative change that counts as none."""

    @property
    def relative(self) -> float:
        """0.2 for 20 % more than before; infinite where the case no longer runs."""
        return self.new / self.old - 1 if self.old else math.inf

    @property
    def verdict(self) -> str:
        """``worse``, ``better`` or ``none``."""
        if abs(self.relative) <= self.allowed:
            return "none"
        return "worse" if self.relative > 0 else "better"


@dataclass(frozen=True)
class Comparison:
    """All common cases of two records."""

    changes: list[Change]
    machine_drift: float
    """Largest relative change of the machine's own rates."""
    only_old: list[Row]
    only_new: list[Row]
    warnings: list[str]

    def worse(self, over: float = 0.0) -> list[Change]:
        """Changes for the worse, beyond noise and by more than ``over``."""
        return [c for c in self.changes if c.verdict == "worse" and c.relative > over]

    def to_json(self) -> dict[str, Any]:
        """Ready for --json."""
        return {
            "machine_drift": self.machine_drift,
            "warnings": self.warnings,
            "changes": [
                {
                    **dict(
                        zip(
                            ("what", "operation", "arm", "seq_len", "batch", "dtype"),
                            identity(c.row),
                            strict=True,
                        )
                    ),
                    "quantity": c.quantity,
                    "old": c.old,
                    "new": c.new,
                    "relative": c.relative,
                    "allowed": c.allowed,
                    "verdict": c.verdict,
                }
                for c in self.changes
            ],
        }


def compare_records(old: dict[str, Any], new: dict[str, Any]) -> Comparison:
    """What changed from ``old`` to ``new``, both valid records."""
    before = {identity(row): row for row in rows_of(old)}
    after = {identity(row): row for row in rows_of(new)}
    drift = machine_drift(old["machine"], new["machine"])
    changes: list[Change] = []
    for key, row in after.items():
        if key in before:
            changes += _changes(before[key], row, drift)
    return Comparison(
        changes,
        drift,
        [row for key, row in before.items() if key not in after and row.status == "ok"],
        [row for key, row in after.items() if key not in before and row.status == "ok"],
        _warnings(old, new, drift),
    )


def machine_drift(old: dict[str, Any], new: dict[str, Any]) -> float:
    """Largest relative difference between any two measurements of the same rate."""
    drift = 0.0
    measured = [
        rates
        for machine in (old, new)
        for rates in (machine.get("rates_at_start"), machine.get("rates_at_end"))
        if rates
    ]
    for rate in ("bandwidth_bytes_per_second", "matmul_flops"):
        values = [rates[rate] for rates in measured]
        if values and min(values) > 0:
            drift = max(drift, max(values) / min(values) - 1)
    return drift


def noise_of(row: Row) -> float:
    """Relative noise of a row's median."""
    if not row.median_ms or not row.samples:
        return 0.0
    return _median_noise((row.spread_ms or 0.0) / row.median_ms, row.samples)


def ratio_noise(row: Row) -> float:
    """Absolute noise of a row's speed ratio, in units of the ratio; also between two processes.

    The machine's drift is not in it: both sides of every round's ratio were timed within it.
    """
    if not row.speed_ratio or not row.samples:
        return 0.0
    spread = (row.speed_ratio_spread or 0.0) / row.speed_ratio
    return row.speed_ratio * (_median_noise(spread, row.samples) + PROCESS_NOISE)


def _median_noise(spread: float, samples: int) -> float:
    """Of a median of ``samples`` whose interquartile range is ``spread``."""
    return 3.2 * (1 + 3 / samples) * spread / math.sqrt(samples)


def _changes(old: Row, new: Row, drift: float) -> list[Change]:
    if old.status == "ok" and new.status not in ("ok", "skipped"):
        return [Change(new, "status", 0.0, 1.0, 0.0)]
    found = []
    if old.median_ms and new.median_ms:
        allowed = math.hypot(noise_of(old), noise_of(new)) + drift + PROCESS_NOISE
        found.append(Change(new, "time", old.median_ms, new.median_ms, allowed))
    if old.peak_bytes and new.peak_bytes:
        change = (float(old.peak_bytes), float(new.peak_bytes))
        found.append(Change(new, "memory", *change, MEMORY_NOISE))
    return found


def _warnings(old: dict[str, Any], new: dict[str, Any], drift: float) -> list[str]:
    found = []
    for name in ("device", "threads", "accelerator", "wait_policy", "spin_count"):
        values = [record["machine"].get(name) for record in (old, new)]
        if values[0] != values[1]:
            found.append(f"{name}: {values[0]} before, {values[1]} now")
    processors = [record["environment"].get("processor") for record in (old, new)]
    if processors[0] != processors[1]:
        found.append(f"processor: {processors[0]} before, {processors[1]} now")
    if drift > 0.1:
        found.append(
            f"the machine's own rates moved by {drift:.0%} (other work beside this?): changes "
            "smaller than that cannot be told from it"
        )
    return found


def sentence(changes: Sequence[Change], fail_over: float | None) -> str:
    """One line for the end of a comparison."""
    worse = [c for c in changes if c.verdict == "worse"]
    if not worse:
        return "No regression beyond noise."
    limit = "" if fail_over is None else f", {sum(c.relative > fail_over for c in worse)} of them "
    limit += "" if fail_over is None else f"by more than {fail_over:.0%}"
    return f"{len(worse)} of {len(changes)} figures are worse beyond noise{limit}."
