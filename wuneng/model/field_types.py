"""Whether a value is of the type that a field of a configuration has, or one of its choices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from wuneng.errors import shortened
from wuneng.limits import LARGEST_COUNT

__all__ = ["CHOICES", "choice_problem", "is_finite_number", "type_problem"]

CHOICES: dict[str, tuple[str, ...]] = {
    "state_key_source": ("attention", "own"),
    "state_value_source": ("attention", "attention_output", "own"),
    "state_removal_key": ("shared", "own"),
    "token_shift": ("post", "pre", "none"),
    "state_norm": ("group", "none"),
    "state_output_scale": ("head", "scalar"),
    "output_init": ("zero", "small", "normal"),
    "state_init": ("even", "published"),
    "state_gate_sigmoid": ("hidden", "output"),
    "state_branch_init": ("zero", "small", "normal"),
    "ffn": ("swiglu", "mlp", "rwkv7"),
    "norm": ("rmsnorm", "rmsnorm_wide", "rmsnorm_plus_one", "layernorm"),
    "norm_placement": ("pre", "post", "both"),
    "qk_norm_over": ("head", "width"),
}
#: Of these, what is the output projections' or the kind's where it is left out.
_MAY_BE_NONE = ("state_branch_init", "state_init", "state_gate_sigmoid")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_COUNT


def is_finite_number(value: Any) -> bool:
    """Whether it is an integer that can be counted with, or a finite float."""
    return _is_int(value) or (isinstance(value, float) and math.isfinite(value))


#: What a value of each declared type is.
_TYPES: dict[str, Callable[[Any], bool]] = {
    "int": _is_int,
    "float": is_finite_number,
    "str": lambda value: isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "None": lambda value: value is None,
    "dict": lambda value: isinstance(value, dict),
    "list[str]": lambda value: (
        isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)
    ),
    "list[int]": lambda value: isinstance(value, list | tuple) and all(map(_is_int, value)),
}


def type_problem(value: Any, declared: str) -> str | None:
    """What is wrong with a field's value, to follow its name; None if it is of a declared type.

    Args:
        declared: the annotation, such as ``int | None``. A type that is not known here fits all.
    """
    kinds = [kind for kind in declared.split(" | ") if kind in _TYPES]
    if not kinds or any(_TYPES[kind](value) for kind in kinds):
        return None
    got = shortened(repr(value))
    if "float" in kinds and isinstance(value, float):
        return f"must be a finite number, got {got}"
    listed = "list[int]" in kinds and isinstance(value, list | tuple)
    single = "int" in kinds or "float" in kinds
    numbers = value if listed else [value] if single else []
    if numbers and all(type(one) is int for one in numbers):
        return f"must be {declared} of at most {LARGEST_COUNT}, got {got}"
    return f"must be {declared}, got {got}"


def choice_problem(name: str, value: Any) -> str | None:
    """What is wrong with the value of a field of :data:`CHOICES`, to follow its name."""
    if value in CHOICES[name] or (value is None and name in _MAY_BE_NONE):
        return None
    return f"must be one of {', '.join(CHOICES[name])}, got {value!r}"
