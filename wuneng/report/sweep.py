"""A sweep: every arm at every combination of values, and the best of each."""

from __future__ import annotations

import json
from typing import Any

from wuneng.report.records import Records
from wuneng.report.section import Section

__all__ = ["sweep"]


def sweep(records: Records) -> Section | None:
    """A row for each point and arm; ``best`` marks the point that each arm is best at."""
    found = records.sweep
    if found is None:
        return None
    rows: list[dict[str, Any]] = []
    for point in found["points"]:
        for arm, entry in point["arms"].items():
            best = (found["best"].get(arm) or {}).get("point") == point["point"]
            row = {"point": point["point"], "values": json.dumps(point["values"]), "arm": arm}
            row |= {"diverged": entry is None, "best": best}
            quality = (entry or {}).get("quality") or {}
            row |= {name: quality.get(name) for name in found["figures"]}
            rows.append(row)
    text = ("One figure for each value, untested: a sweep chooses, it does not compare.",)
    return Section("sweep", "Sweep", text, tuple(rows)) if rows else None
