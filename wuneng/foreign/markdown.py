"""Text that is not ours, on a page of Markdown: it is shown, and means nothing there."""

from __future__ import annotations

import re

from wuneng.foreign.text import shown_line

__all__ = ["code_span", "markdown_text"]

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$&!])")


def markdown_text(value: object) -> str:
    """What others wrote, without meaning to Markdown or to the HTML in it."""
    return _SPECIAL.sub(r"\\\1", shown_line(str(value)))


def code_span(text: str) -> str:
    """``text`` as code, behind as many backticks as it takes to hold those in it."""
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks} {shown_line(text)} {ticks}"
