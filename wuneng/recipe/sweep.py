"""Several values for a field: ``sweep:`` in a recipe, or ``--set path=a,b,c``.

Every combination of the values is a point: a recipe of its own, trained as a run of its own.
"""

from __future__ import annotations

import hashlib
import json
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any, Union, get_args, get_origin

from wuneng.errors import RecipeError
from wuneng.recipe.settings import Choices, Settings

__all__ = ["MOST_POINTS", "Point", "points_of", "several_values"]

#: Combinations that anybody means.
MOST_POINTS = 1000
_LONGEST_NAME = 80


@dataclass(frozen=True)
class Point:
    """One combination."""

    name: str
    """Names its directory, as ``learning_rate-0.001``."""
    values: Mapping[str, Any]
    """By the path of the field."""

    def __str__(self) -> str:
        return ", ".join(f"{path}={written(value)}" for path, value in self.values.items())


def points_of(sweep: Mapping[str, Sequence[Any]]) -> list[Point]:
    """Every combination, the last field changing fastest; none of an empty sweep.

    Raises:
        RecipeError: more than ``MOST_POINTS``.
    """
    if not sweep:
        return []
    number = 1
    for values in sweep.values():
        number *= len(values)
    if number > MOST_POINTS:
        raise RecipeError(f"sweep: expected at most {MOST_POINTS:,} combinations, got {number:,}")
    combinations = [dict(zip(sweep, values, strict=True)) for values in product(*sweep.values())]
    names = [_name(values) for values in combinations]
    clear = len(set(names)) == len(names) and max(map(len, names)) <= _LONGEST_NAME
    return [
        Point(name if clear else _number(values), values)
        for name, values in zip(names, combinations, strict=True)
    ]


def several_values(annotation: Any, keys: Sequence[str], text: str) -> list[str] | None:
    """The values in ``text`` as ``--set`` has it, where commas part them; None where it is one.

    They do where the field takes numbers, true and false, or words from a fixed choice. A field
    that takes any text or a list is given what stands there: ``seed=[0, 1]``, ``data.train=a,b``.

    Args:
        annotation: of the recipe.
        keys: the path of the field.
    """
    if "," not in text or text.lstrip()[:1] in ("[", "{", '"', "'"):
        return None
    kinds = [kind for found, metadata in _at(annotation, keys) for kind in _kinds(found, metadata)]
    if not kinds or not all(kinds):
        return None
    return [part.strip() for part in text.split(",")]


def written(value: Any) -> str:
    """A value as short as a reader wants it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(values: Mapping[str, Any]) -> str:
    """A name that is the values' own, whatever else is in the sweep."""
    text = json.dumps(values, sort_keys=True, default=str)
    return f"point-{hashlib.sha256(text.encode('utf-8')).hexdigest()[:10]}"


def _name(values: Mapping[str, Any]) -> str:
    last = [path.rpartition(".")[2] for path in values]
    names = last if len(set(last)) == len(last) else list(values)
    parts = (f"{name}-{written(value)}" for name, value in zip(names, values.values(), strict=True))
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", "_".join(parts)).replace("+", "").lstrip(".-_")


def _at(
    annotation: Any, keys: Sequence[str], metadata: tuple[Any, ...] = ()
) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Annotations of the field at ``keys``; several where a part of the way has several forms."""
    kind, arguments = get_origin(annotation), get_args(annotation)
    if kind is Annotated:
        yield from _at(arguments[0], keys, (*arguments[1:], *metadata))
    elif not keys:
        yield annotation, metadata
    elif kind in (Union, types.UnionType):
        for member in arguments:
            yield from _at(member, keys)
    elif kind in (dict, list):
        yield from _at(arguments[-1], keys[1:])
    elif isinstance(annotation, type) and issubclass(annotation, Settings):
        field = annotation.model_fields.get(keys[0])
        if field is not None:
            yield from _at(field.annotation, keys[1:], tuple(field.metadata))


def _kinds(annotation: Any, metadata: tuple[Any, ...]) -> Iterator[bool]:
    """For each form of a field: whether it is a number, a truth value or one of some words."""
    kind, arguments = get_origin(annotation), get_args(annotation)
    if kind is Annotated:
        yield from _kinds(arguments[0], (*arguments[1:], *metadata))
    elif kind in (Union, types.UnionType):
        for member in arguments:
            yield from _kinds(member, metadata)
    elif annotation is str:
        yield any(isinstance(item, Choices) for item in metadata)
    elif annotation is not types.NoneType:
        yield annotation in (int, float, bool) or (kind is not None and kind not in (list, dict))
