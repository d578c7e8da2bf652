"""Whether what stands in an arm's ``result.json`` is what a run writes there, field by field."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["record_problem"]


def _number(value: Any) -> bool:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and abs(value) < 1e300 and math.isfinite(value)


def _positive(value: Any) -> bool:
    return _number(value) and value >= 0


def _by_name(valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(valid, value.values()))


def _number_or_none(value: Any) -> bool:
    return value is None or _number(value)


def _best(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    if not value.get("kept"):
        return True
    step = value.get("step")
    return type(step) is int and isinstance(value.get("name"), str) and _number(value.get("value"))


#: Field: (whether every version has written it, what it may be, that in words).
_FIELDS: dict[str, tuple[bool, Callable[[Any], bool], str]] = {
    "arm": (True, lambda v: isinstance(v, str), "a name"),
    "seed": (True, lambda v: isinstance(v, int) and not isinstance(v, bool), "a whole number"),
    "kind": (True, lambda v: isinstance(v, str), "a name"),
    "token_shift": (False, lambda v: isinstance(v, bool), "true or false"),
    "short_conv": (False, lambda v: isinstance(v, bool), "true or false"),
    "parameters": (True, lambda v: _positive(v) and v >= 1, "a number of 1 or more"),
    "trainable_parameters": (False, _positive, "a number of 0 or more"),
    "init_from": (False, lambda v: v is None or isinstance(v, str), "a name or null"),
    "trains": (False, lambda v: isinstance(v, str | list), "a word or a list"),
    "state_control": (False, lambda v: isinstance(v, str), "a name"),
    "cache_bytes": (False, _positive, "a number of 0 or more"),
    "state_bytes": (False, _positive, "a number of 0 or more"),
    "added_percent": (False, _number, "a number"),
    "training_flops": (True, _positive, "a number of 0 or more"),
    "steps": (True, _positive, "a number of 0 or more"),
    "tokens": (True, _positive, "a number of 0 or more"),
    "seconds": (True, _positive, "a number of 0 or more"),
    "tokens_per_second": (True, _positive, "a number of 0 or more"),
    "data_wait": (False, _positive, "a number of 0 or more"),
    "learning_rate": (False, _number, "a number"),
    "final_loss": (True, _number_or_none, "a number or null"),
    "best_validation": (True, _best, "an object of step, name and value"),
    "quality": (True, _by_name(_number_or_none), "an object of numbers"),
    "standard_error": (False, _by_name(_positive), "an object of numbers of 0 or more"),
    "skipped_batches": (False, _positive, "a number of 0 or more"),
    "examples": (False, _by_name(_positive), "an object of numbers of 0 or more"),
}


def record_problem(record: Mapping[str, Any]) -> str:
    """What is wrong with the first field that is, in words; empty if nothing is."""
    for name, (required, valid, expected) in _FIELDS.items():
        if name not in record:
            if required:
                return f"it lacks {name}"
        elif not valid(record[name]):
            return f"{name} is not {expected}"
    return ""
