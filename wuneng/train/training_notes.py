"""What else the end of a run tells: batches that were skipped, and the best checkpoints by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["training_notes"]

_MOST_NAMED = 4


def training_notes(results: Mapping[str, Any]) -> str:
    """The sentences, from results.json as a dictionary; empty where there is nothing to tell."""
    arms = results["arms"]
    return " ".join(filter(None, (_skipped(arms), _best(arms))))


def _skipped(arms: Mapping[str, Any]) -> str:
    told = []
    for name, arm in arms.items():
        if arm.get("skipped_batches"):
            steps = arm["steps"] * (len(arm.get("seeds", ())) or 1)
            told.append(f"{name} {arm['skipped_batches']:,} of {steps:,}")
    if not told:
        return ""
    return f"Batches were skipped, as their loss or gradient was out of bounds: {', '.join(told)}."


def _best(arms: Mapping[str, Any]) -> str:
    told = [
        f"{best['directory']} ({best['name']} {best['value']:.4f})"
        for arm in arms.values()
        for best in arm.get("best_checkpoints", ())
    ]
    if not told:
        return ""
    more = f" and {len(told) - _MOST_NAMED} more" if len(told) > _MOST_NAMED else ""
    return f"Checkpoints of the best validation: {', '.join(told[:_MOST_NAMED])}{more}."
