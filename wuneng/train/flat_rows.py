"""Rows of metrics.jsonl without mappings in them: the same names for every logger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["flat", "numbers"]


def flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Mappings taken apart, at any depth: ``{"a": {"b": 1}}`` is ``{"a/b": 1}``."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}/")
        else:
            found[f"{prefix}{name}"] = value
    return found


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row, flat, but for ``step``; true counts as 1."""
    return {
        name: value
        for name, value in flat(row).items()
        if isinstance(value, int | float) and name != "step"
    }
