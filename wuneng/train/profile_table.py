"""Where the time of profiled steps went, for the end of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wuneng.records import read_json
from wuneng.tables import Column, Table
from wuneng.train.step_profile import WHERE

__all__ = ["profile_tables", "read_profiles"]

_OPERATORS = 6


def read_profiles(run: Path) -> dict[str, Any]:
    """where.json of every arm, and seed where there are several, that has one; by its directory."""
    files = [*run.glob(f"*/profile/{WHERE}"), *run.glob(f"*/seed-*/profile/{WHERE}")]
    return {
        file.parent.parent.relative_to(run).as_posix(): read_json(file) for file in sorted(files)
    }


def profile_tables(profiles: Mapping[str, Any]) -> list[Table]:
    """Shares of a step by part, arms side by side, and by operator; none where nothing was
    profiled."""
    if not profiles:
        return []
    steps = "-".join(map(str, next(iter(profiles.values()))["steps"]))
    tables = []
    for kind, key, most in (("parts", "part", None), ("operators", "operator", _OPERATORS)):
        table = Table(
            f"where the time of steps {steps} went, by {key}",
            [Column("", name=True), *map(Column, profiles)],
            turns=True,
            elsewhere=f"<arm>/profile/{WHERE}",
        )
        shares = {
            arm: {row[key]: row["share"] for row in found[kind]} for arm, found in profiles.items()
        }
        names = dict.fromkeys(name for own in shares.values() for name in own)
        largest = sorted(names, key=lambda name: -max(own.get(name, 0) for own in shares.values()))
        for name in largest[:most]:
            cells = (f"{own[name]:.1%}" if name in own else "–" for own in shares.values())
            table.add_row(name[:36], *cells)
        tables.append(table)
    return tables
