"""Lines in passing: harmless, and on a terminal broken between words to its width."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from typing import TextIO

from wuneng.foreign.text import shown

__all__ = ["folded", "print_line"]

_NARROWEST = 20
#: What a line may begin with that the rest of it stands to the right of: blanks, then ``error: ``
#: or a label in a column of its own.
_LEAD = re.compile(r" *(?:(?:error|warning): |(?<= )\S+ {2,})?", re.IGNORECASE)


def print_line(text: object = "", *, stderr: bool = False, file: TextIO | None = None) -> None:
    """``print`` for a line that holds what others have named.

    On stdout it is a result and stays as it is. On stderr, or ``file``, it is told in passing: a
    person reads it, and it is :func:`folded`.
    """
    if file is None and not stderr:
        print(shown(str(text)), flush=True)
        return
    stream = file if file is not None else sys.stderr
    print(folded(str(text), stream), file=stream, flush=True)


def folded(text: str, stream: TextIO) -> str:
    """``text``, harmless, every line broken to the width of the terminal that ``stream`` is and
    what follows indented as the line is; words, paths too, stay whole. On anything else a line
    stays one, for programs that look for it.
    """
    width = _terminal_width(stream)
    text = shown(text)
    if width is None or all(len(line) <= width for line in text.split("\n")):
        return text
    return "\n".join(_folded_line(line, width) for line in text.split("\n"))


def _folded_line(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    lead = _LEAD.match(line)
    return textwrap.fill(
        line,
        max(width, _NARROWEST),
        subsequent_indent=" " * len(lead.group() if lead else ""),
        drop_whitespace=True,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _terminal_width(stream: TextIO) -> int | None:
    """Columns of the terminal that ``stream`` is; None where it is none."""
    if not stream.isatty():
        return None
    if (said := os.environ.get("COLUMNS", "")).isdecimal() and int(said):
        return int(said)
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError):  # no terminal of this system, for all it says
        return None
