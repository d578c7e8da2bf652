"""Where a row of parity has its ones, and on which side each state is at every token.

    ones  .1.1.11.
    0.1   ++--++-+

A state that keeps the parity changes sides at every one and at nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["strip_lines", "turns"]

_LONGEST = 256  # tokens; more are no picture any more


def strip_lines(record: dict[str, Any], width: int) -> Iterator[str]:
    """Strips of at most ``width`` columns, then what they count; nothing without ones."""
    ones = record["text"].get("ones")
    heads = list(_sides(record))
    if not ones or not heads:
        return
    length = record["text"]["tokens"]
    names = ["ones", *(name for name, _ in heads)]
    places = set(ones)
    rows = ["".join("1" if t in places else "." for t in range(1, length + 1))]
    rows += ["".join("+" if side > 0 else "-" for side in sides) for _, sides in heads]
    gap = max(map(len, names)) + 2
    if length <= _LONGEST:
        yield "tokens in order: the ones, and the side that each head's state is on"
        step = max(width - gap, 8)
        for start in range(0, length, step):
            for name, row in zip(names, rows, strict=True):
                yield name.ljust(gap) + row[start : start + step]
    for name, sides in heads:
        at_ones, at_zeros = turns(sides, ones)
        yield (
            f"{name}: turns at {at_ones} of {len(places - {1})} ones and at {at_zeros} of "
            f"{length - 1 - len(places - {1})} zeros after the first token"
        )


def turns(sides: Sequence[float], ones: Sequence[int]) -> tuple[int, int]:
    """Tokens from the second on at which a state changes sides: ones, and others.

    Args:
        sides: at each token, above or below zero.
        ones: numbers of tokens, from 1.
    """
    turned = {t + 1 for t in range(1, len(sides)) if (sides[t] > 0) != (sides[t - 1] > 0)}
    at_ones = len(turned & set(ones))
    return at_ones, len(turned) - at_ones


def _sides(record: dict[str, Any]) -> Iterator[tuple[str, list[float]]]:
    for layer in record["layers"]:
        if "state" in layer:
            path = layer["state"]["coordinate"]
            for head in range(len(path[0])):
                yield f"{layer['layer']}.{head}", [row[head] for row in path]
