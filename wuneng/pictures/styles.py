"""Which colour, marker and dash an arm has, in every picture.

An arm's colour is its own within a panel, whatever else is in it: two series never share one.
Okabe and Ito's colours, which stay apart for colour-blind readers, come first; each arm also has
its own marker and dash, so that a picture survives being printed in grey.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["GREY", "styles_of"]

GREY = "#555555"

_BLUE, _RED, _GREEN, _PINK, _ORANGE, _SKY, _BLACK = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),
)
_WINE, _OLIVE, _INDIGO, _BROWN, _SAND, _SLATE = (
    *("#882255", "#999933", "#332288", "#8C510A", "#C2B280", "#7F7F7F"),
)
_FIRST_COLOURS = (_BLUE, _RED, _GREEN, _PINK, _ORANGE, _SKY, _BLACK)
_PALETTE = (*_FIRST_COLOURS, _WINE, _OLIVE, _INDIGO, _BROWN, _SAND, _SLATE)
#: Colour, marker and dash of each arm, where no other arm of the panel has the colour already.
_STYLES = {
    "wuneng": (_BLUE, "o", "-"),
    "mha": (_RED, "s", "--"),
    "rwkv7": (_GREEN, "D", "-."),
    "llama": (_PINK, "^", ":"),
    "replace": (_ORANGE, "v", "-"),
    "mha-shift": (_SKY, "P", "--"),
    "chunked": (_BLUE, "o", "-"),
    "triton": (_GREEN, "D", "-."),
    "native": (_GREEN, "D", "-."),
    "reference": (_BLACK, "X", ":"),
    "sdpa": (_RED, "s", "--"),
    "fla": (_BLACK, "p", "-."),
    "fla-chunk": (_PINK, "^", ":"),
    "fla-recurrent": (_WINE, "<", "-"),
    "flash-attn": (_ORANGE, "v", "-"),
    "flex": (_SKY, "P", "--"),
    "mamba2": (_BROWN, "h", "-"),
    "fla-kda": (_OLIVE, "*", "--"),
    "eager": (_SLATE, "h", "-"),
    "fused": (_OLIVE, "*", "--"),
    "compiled": (_INDIGO, ">", ":"),
}
_OTHER_MARKERS = ("h", "*", "p", ">", "d", "<")


def styles_of(arms: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Keyword arguments of a line for each arm of a panel; no two arms have one colour."""
    known = {_STYLES[arm][0] for arm in arms if arm in _STYLES}
    spare = iter([colour for colour in _PALETTE if colour not in known])
    styles: dict[str, dict[str, Any]] = {}
    for number, arm in enumerate(arms):
        marker = _OTHER_MARKERS[number % len(_OTHER_MARKERS)]
        colour, marker, dash = _STYLES.get(arm, ("", marker, ("-", "--", ":", "-.")[number % 4]))
        if not colour or colour in [style["color"] for style in styles.values()]:
            colour = next(spare, "") or _shade(number)
        styles[arm] = {
            "color": colour,
            "marker": marker,
            "linestyle": dash,
            "markersize": 5,
            "linewidth": 1.6,
            "label": arm,
        }
    return styles


def _shade(number: int) -> str:
    """More arms than the palette has colours: from around the wheel, each once."""
    from matplotlib.colors import hsv_to_rgb, to_hex

    return str(to_hex(hsv_to_rgb((number * 0.381966 % 1, 0.45 + 0.1 * (number % 3), 0.6))))
