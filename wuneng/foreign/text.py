"""Text that is not ours, made harmless for a terminal.

A file name, a key or a tensor's name may hold escape sequences that retitle a window, hide what
stands before them or turn the direction of writing. They are shown, not obeyed.
"""

from __future__ import annotations

import re
import unicodedata

__all__ = ["shown", "shown_line"]

#: Control characters, marks of direction and of nothing visible, lone surrogates, line separators.
#: Ordinary text, words and emoji joined by U+200D included, has none.
_CATEGORIES = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_JOINERS = {"\u200c", "\u200d", "\u00ad"}
#: What has to be looked at; plain text costs one search.
_UNUSUAL = re.compile(r"[^\n\t -~]")


def shown(text: str) -> str:
    """``text`` with every character that a terminal would obey or hide written as ``\\x1b``.

    Line breaks and tabs stay.
    """
    return _UNUSUAL.sub(_visible, text)


def shown_line(text: str) -> str:
    """As :func:`shown`, on one line: line breaks and tabs are written as ``\\n`` and ``\\t``."""
    return shown(text).replace("\n", "\\n").replace("\t", "\\t")


def _visible(match: re.Match[str]) -> str:
    character = match.group()
    if unicodedata.category(character) not in _CATEGORIES or character in _JOINERS:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
