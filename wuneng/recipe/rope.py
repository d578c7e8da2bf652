"""``model.rope_scaling``: which settings each kind of rotary scaling has, and what they may be."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from wuneng.errors import nearest, shortened

__all__ = ["rope_problems"]

#: Kinds that transformers implements, and what each cannot do without.
_NEEDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("factor", "short_factor", "long_factor", "original_max_position_embeddings"),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}
_LENGTH = "original_max_position_embeddings"
_LISTS = ("short_factor", "long_factor")
_POSITIVE = (
    *("factor", "rope_theta", "low_freq_factor", "high_freq_factor"),
    *("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
)
_FIELDS = ("rope_type", _LENGTH, *_LISTS, *_POSITIVE, "truncate")


def rope_problems(scaling: dict[str, Any], head_dim: int) -> Iterator[str]:
    """What is wrong with a ``rope_scaling``, for heads of ``head_dim``; None of it is computed."""
    kind = scaling.get("rope_type")
    if not isinstance(kind, str) or kind not in _NEEDS:
        kinds = ", ".join(_NEEDS)
        yield f"expected rope_type to be one of {kinds}, got {shortened(repr(kind))}"
        return
    missing = [name for name in _NEEDS[kind] if name not in scaling]
    if missing:
        yield f"rope_type {kind} needs {' and '.join(missing)}"
    for name, value in scaling.items():
        if name not in _FIELDS:
            yield f"{shortened(name)} is not a known field.{nearest(name, _FIELDS)}"
            continue
        expected = _expected(name, value, head_dim // 2)
        if expected:
            yield f"expected {name} to be {expected}, got {shortened(repr(value))}"


def _expected(name: str, value: Any, frequencies: int) -> str:
    """What the field should have been; empty if it is."""
    if name == _LENGTH:
        whole = isinstance(value, int) and not isinstance(value, bool) and 2 <= value <= 2**40
        return "" if whole else "a whole number of 2 or more"
    if name == "truncate":
        return "" if isinstance(value, bool) else "true or false"
    if name in _LISTS:
        fits = isinstance(value, list) and len(value) == frequencies and all(map(_positive, value))
        return "" if fits else f"a list of {frequencies:,} positive numbers (half of head_dim)"
    return "" if name == "rope_type" or _positive(value) else "a positive number"


def _positive(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and value > 0 and math.isfinite(value)
