"""Numbers as people write them: ``8k`` tokens, ``1M`` sequences, ``1e-3`` learning rate.

``k``, ``M`` and ``G`` are powers of 1024 everywhere, so that ``8k`` is a context length of 8192.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from annotated_types import Ge, Le
from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from wuneng.errors import InputError, shortened
from wuneng.limits import (
    LARGEST_COUNT,
    MOST_HEADS,
    MOST_LAYERS,
    MOST_THREADS,
    MOST_TOKEN_IDS,
    WIDEST,
    WIDEST_FEED_FORWARD,
)

__all__ = [
    "LARGEST_COUNT",
    "Count",
    "Fraction",
    "Heads",
    "Layers",
    "Length",
    "PositiveCount",
    "Real",
    "Rows",
    "Vocabulary",
    "WideWidth",
    "Width",
    "parse_real",
    "parse_size",
]

_FACTORS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
_SIZE = re.compile(r"(?P<number>\d[\d_]*(\.\d+)?([eE]\+?\d+)?)\s*(?P<suffix>[kKmMgG]?)")
_EXPECTED = "a whole number, possibly with the suffix k, M or G (powers of 1024)"


def parse_size(value: str | int | float) -> int:
    """``8192``, ``"8k"``, ``"1.5M"`` or ``1e3`` as an integer; InputError otherwise."""
    size = _size(value)
    if size is None:
        raise InputError(f"expected {_EXPECTED}, got {shortened(repr(value))}")
    return size


def parse_real(value: str | int | float) -> float:
    """A float from a number or from text such as ``1e-3``; InputError otherwise."""
    real = _real(value)
    if real is None:
        raise InputError(f"expected a number, got {shortened(repr(value))}")
    return real


def _size(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        return None
    size = float(match["number"].replace("_", "")) * _FACTORS[match["suffix"].lower()]
    return int(size) if size.is_integer() else None


def _real(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        real = float(value)
    except (ValueError, OverflowError):
        return None
    return real if abs(real) < float("inf") else None


def _count_field(value: Any) -> int:
    size = _size(value)
    if size is None:
        raise PydanticCustomError("count", "{expected}", {"expected": _EXPECTED})
    if size > LARGEST_COUNT:
        raise PydanticCustomError("count", "{expected}", {"expected": "at most 2**62"})
    return size


def _real_field(value: Any) -> float:
    real = _real(value)
    if real is None:
        raise PydanticCustomError("real", "{expected}", {"expected": "a number"})
    return real


# Bounds and no ``Field(ge=)`` in these shared types: pydantic 2.7 keeps the default of the
# first field that has such a type in the Field, and then gives it to fields that have none.
Count = Annotated[int, BeforeValidator(_count_field), Ge(0)]
PositiveCount = Annotated[int, BeforeValidator(_count_field), Ge(1)]
Real = Annotated[float, BeforeValidator(_real_field)]
Fraction = Annotated[float, BeforeValidator(_real_field), Ge(0.0), Le(1.0)]

# Sizes of a model (``wuneng.limits``) or a batch.
Width = Annotated[PositiveCount, Le(WIDEST)]
WideWidth = Annotated[PositiveCount, Le(WIDEST_FEED_FORWARD)]
Layers = Annotated[PositiveCount, Le(MOST_LAYERS)]
Heads = Annotated[Count, Le(MOST_HEADS)]
Vocabulary = Annotated[PositiveCount, Le(MOST_TOKEN_IDS)]
Length = Annotated[PositiveCount, Le(2**28)]
Rows = Annotated[PositiveCount, Le(2**20)]
Threads = Annotated[PositiveCount, Le(MOST_THREADS)]
