"""Where the records come from: machine, versions, and the command that makes them again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from wuneng.report.records import Records
from wuneng.report.section import Section

__all__ = ["command", "command_of", "environment"]


def command(records: Records) -> str:
    """The command line that made the records; empty where it was not recorded."""
    return command_of({"environment": records.environment})


def command_of(record: Mapping[str, Any] | None) -> str:
    """The command line in the ``environment`` of one record; empty where it was not recorded."""
    line = ((record or {}).get("environment") or {}).get("command_line")
    return shlex.join(str(word) for word in line) if isinstance(line, list) else ""


def environment(records: Records) -> Section | None:
    """Everything of environment.json."""
    rows = tuple({"what": key, "value": value} for key, value in _flat(records.environment or {}))
    text = ("As recorded when the command began.",)
    return Section("environment", "Environment", text, rows) if rows else None


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and path == "command_line":
        yield path, shlex.join(map(str, value))
    elif isinstance(value, list):
        yield path, ", ".join(map(str, value))
    else:
        yield path, value
