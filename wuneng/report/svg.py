"""A panel as SVG inside a page: no file, no script, no link, legible on light and dark."""

from __future__ import annotations

import io
import re
from typing import Any
from xml.sax.saxutils import escape

from wuneng.foreign.text import shown_line
from wuneng.pictures import drawing, panels
from wuneng.report.section import Picture, label

__all__ = ["DARK", "WIDTH", "drawn", "inline_svg"]

WIDTH = 5.2
"""Inches of a panel."""

#: Colours of the series that are too dark on a dark page, and what they are there.
DARK = {
    "#0072b2": "#3f8cff",
    "#56b4e9": "#a8dcff",
    "#d55e00": "#ff8a3d",
    "#009e73": "#2fcf9f",
    "#882255": "#e07bb0",
    "#332288": "#9a8cf0",
    "#8c510a": "#d19a52",
    "#999933": "#c4c45a",
    "#000000": "#eeeeee",
    "#111111": "#e6e6e6",
    "#555555": "#aaaaaa",
    "#dddddd": "#3a3d42",
}
#: matplotlib leaves plain black out, which would stay black on a dark page.
_INK = dict.fromkeys(
    ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), "#111111"
)
_HEAD = re.compile(r"^.*?(?=<svg)", re.DOTALL)
_TAG = re.compile(r"<[^>]*>")
_COLOUR = re.compile("|".join(DARK), re.IGNORECASE)
_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
_NAMES = re.compile(r' xmlns(:xlink)?="[^"]*"| version="[^"]*"')


def inline_svg(picture: Picture, key: str) -> str:
    """The panel as an ``<svg>`` element.

    Args:
        key: makes the ids of the element its own on the page; letters, digits and hyphens.
    """
    with drawing(**{"svg.fonttype": "none", "svg.hashsalt": key, **_INK}):
        text = drawn([picture], "svg").decode("utf-8")
    text = _METADATA.sub("", _HEAD.sub("", text))
    root, _, rest = text.partition(">")
    root = _NAMES.sub("", root)
    root = re.sub(r' (width|height)="[^"]*"', "", root)
    rest = _TAG.sub(lambda tag: _own(tag[0], key), rest)
    title = f'<title id="{key}-title">{escape(shown_line(picture.alt))}</title>'
    return f'{root} role="img" aria-labelledby="{key}-title">{title}{rest}'


def _own(tag: str, key: str) -> str:
    """A tag with ids of its own and colours that follow the page's theme; texts stay the same."""
    tag = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{key}-", tag)
    # HTML needs no prefix for links within the element.
    tag = tag.replace("xlink:href=", "href=")
    return _COLOUR.sub(lambda found: f"var(--c{found[0][1:].lower()})", tag)


def drawn(pictures: list[Picture], suffix: str) -> bytes:
    """Panels side by side as a file, ``svg`` or ``png``; inside ``drawing``."""
    from matplotlib import pyplot

    height = max(picture.height for picture in pictures)
    figure, axes = panels(len(pictures), width=WIDTH, height=height)
    for axis, picture in zip(axes, pictures, strict=True):
        picture.draw(axis)
        axis.set_title(label(picture.title, 60), fontsize=10)
    found = io.BytesIO()
    options: dict[str, Any] = {"metadata": {"Date": None}} if suffix == "svg" else {"dpi": 150}
    figure.savefig(found, format=suffix, transparent=suffix == "svg", **options)
    pyplot.close(figure)
    return found.getvalue()
