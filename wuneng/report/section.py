"""A part of a report: a heading, some words, rows of numbers, and pictures of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from wuneng.errors import shortened
from wuneng.foreign.text import shown_line

__all__ = ["Picture", "Section", "label", "number", "percent"]

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Picture:
    """One panel.

    Attributes:
        alt: what it shows, in words, for those who do not see it.
        draw: draws into the matplotlib axes that it is given.
        height: inches; the width is the same for all.
    """

    title: str
    alt: str
    draw: Callable[[Any], None]
    height: float = 3.2


@dataclass(frozen=True)
class Section:
    """Attributes:
    key: names the section's file of numbers; letters and hyphens.
    rows: numbers as the records have them, alike in their keys; every number of the section.
    command: makes the records that the section shows.
    """

    key: str
    title: str
    text: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    pictures: tuple[Picture, ...] = ()
    command: str = ""


def number(value: Any) -> str:
    """A cell: four significant digits, thousands apart; ``–`` for what is not there."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            return str(value)
        plain = f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
        return f"{value:.3e}" if abs(value) >= 1e9 else plain
    return shown_line(str(value))


def percent(share: float) -> str:
    """A share as ``38.2 %``."""
    return f"{100 * share:.1f} %"


def label(name: object, limit: int = 40) -> str:
    """A name of others', short enough for a picture and harmless in it."""
    return shortened(shown_line(str(name)), limit)
