"""How commands print: results on stdout, everything in passing on stderr.

Every line goes through ``wuneng.foreign``: names and texts of others are shown, not obeyed.
"""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING, Any

from wuneng.foreign import print_line, shown

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = [
    "print_error",
    "print_fact",
    "print_json",
    "print_line",
    "print_passing",
    "print_renderable",
    "print_text",
    "short_bytes",
]


def print_error(message: str) -> None:
    """``error: ...`` on stderr; further lines, one for each further problem, are indented."""
    first, *more = message.rstrip("\n").split("\n")
    lines = [f"error: {first}", *(f"       {line}" for line in more)]
    print_line("\n".join(lines), stderr=True)


def print_passing(line: str) -> None:
    """What a person is waiting for: on stderr where that is a terminal, nowhere else."""
    from wuneng.tables import console

    if console(stderr=True).is_terminal:
        print_line(line, stderr=True)


def print_json(value: Any) -> None:
    """The machine-readable result, alone on stdout; what JSON cannot spell becomes null."""
    from wuneng.records import finite

    text = json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    print(re.sub(r"[^\n -~]", _json_escape, text))


def _json_escape(match: re.Match[str]) -> str:
    """JSON's own spelling, for a character that a terminal would obey: the value stays the same."""
    character = match.group()
    return character if shown(character) == character else json.dumps(character)[1:-1]


def print_renderable(renderable: RenderableType, *, stderr: bool = False) -> None:
    """A table or text through rich."""
    from wuneng.tables import console

    console(stderr=stderr).print(renderable)


def print_text(text: str) -> None:
    """A paragraph on stdout: broken between words on a terminal, one line elsewhere."""
    from wuneng.tables import console

    target = console()
    target.print(text, soft_wrap=not target.is_terminal)


def print_fact(line: str) -> None:
    """A line of a result that people read, such as ``  label   what it is``: on a terminal folded,
    what follows under what it is."""
    print_line(line, file=sys.stdout)


def short_bytes(count: float) -> str:
    """``1536`` bytes as ``1.5 KiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
