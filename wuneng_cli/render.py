"""How commands print: results on stdout, everything in passing on stderr.

Every line goes through ``wuneng.foreign``: names and texts of others are shown, not obeyed.
"""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from wuneng.foreign import print_line, shown

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = [
    "folded",
    "print_error",
    "print_json",
    "print_line",
    "print_renderable",
    "print_text",
    "short_bytes",
]

#: Columns that "error: " takes.
_INDENT = 7
_NARROWEST = 20


def print_error(message: str) -> None:
    """``error: ...`` on stderr; further lines, one for each further problem, are indented."""
    first, *more = message.rstrip("\n").split("\n")
    lines = [f"error: {first}", *(f"       {line}" for line in more)]
    print_line("\n".join(folded(line) for line in lines), stderr=True)


def folded(line: str) -> str:
    """A line for stderr: on a terminal broken between words to its width, with what follows
    indented; elsewhere as it is, for programs that look for it. Words, paths too, stay whole.
    """
    width = _terminal_width()
    if width is None or len(line) <= width:
        return line
    return textwrap.fill(
        shown(line),
        max(width, _NARROWEST),
        subsequent_indent=" " * _INDENT,
        drop_whitespace=True,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _terminal_width() -> int | None:
    """Columns of the terminal that stderr is; None where it is none."""
    if not sys.stderr.isatty():
        return None
    if (said := os.environ.get("COLUMNS", "")).isdecimal() and int(said):
        return int(said)
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or None
    except (OSError, ValueError):  # no terminal of this system, for all it says
        return None


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


def short_bytes(count: float) -> str:
    """``1536`` bytes as ``1.5 KiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
