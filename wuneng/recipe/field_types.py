"""The type and the default of a recipe's field in words, from its annotation."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import StringConstraints
from pydantic.fields import FieldInfo

from wuneng.recipe.settings import Choices, Settings

__all__ = ["choices", "written_default", "written_type"]

_NOUNS: dict[Any, tuple[str, str]] = {
    int: ("whole number", "whole numbers"),
    float: ("number", "numbers"),
    str: ("text", "texts"),
    bool: ("true | false", "true | false"),
    types.NoneType: ("null", "null"),
    Any: ("value", "values"),
}


def written_type(annotation: Any, metadata: Iterable[Any] = (), *, several: bool = False) -> str:
    """``whole number from 1 | null``.

    Args:
        metadata: what pydantic has taken out of the annotation.
        several: of the items of a list.
    """
    kind, arguments = get_origin(annotation), get_args(annotation)
    if kind is Annotated:
        return written_type(arguments[0], [*arguments[1:], *metadata], several=several)
    if kind in (Union, types.UnionType):
        words = (written_type(member, metadata, several=several) for member in arguments)
        return " | ".join(dict.fromkeys(words))
    if kind is Literal:
        return " | ".join(map(str, arguments))
    if kind is list:
        return f"list{'s' * several} of {written_type(arguments[0], several=True)}"
    if kind is dict:
        values = "" if arguments[1] is Any else f" of {written_type(arguments[1], several=True)}"
        return f"mapping{'s' * several}{values}"
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return "mapping" + "s" * several
    if named := _named(metadata):
        return " | ".join(named)
    return f"{_NOUNS[annotation][several]}{_bounds(annotation, metadata)}"


def choices(annotation: Any, metadata: Iterable[Any] = ()) -> tuple[str, ...]:
    """The words that a field takes, where it takes no others; null does not count."""
    if named := _named(metadata):
        return named
    members = get_args(annotation)
    kind = get_origin(annotation)
    if kind is Literal:
        return tuple(map(str, members))
    if annotation is bool:
        return ("true", "false")
    if kind in (Union, types.UnionType):
        given = [m for m in members if m is not types.NoneType]
        return choices(given[0]) if len(given) == 1 else ()
    return ()


def written_default(value: Any) -> str:
    """A default as a recipe would spell it: ``null``, ``[1, 2]``; mappings as their keys."""
    if isinstance(value, Settings):
        return ""
    if isinstance(value, dict) and value:
        value = list(value)
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, float):
        return f"{value:g}"
    return yaml.safe_dump(value, default_flow_style=True, width=1000).split("\n")[0]


def _bounds(annotation: Any, metadata: Iterable[Any]) -> str:
    limits = list(_flat(metadata))
    if annotation is str:
        patterns = (limit.pattern for limit in limits if isinstance(limit, StringConstraints))
        return "".join(f" matching {pattern}" for pattern in patterns if pattern)
    least: list[tuple[Any, str]] = [(x.ge, "from") for x in limits if isinstance(x, Ge)]
    least += [(x.gt, "above") for x in limits if isinstance(x, Gt)]
    most: list[tuple[Any, str]] = [(x.le, "to") for x in limits if isinstance(x, Le)]
    most += [(x.lt, "below") for x in limits if isinstance(x, Lt)]
    # Of two limits at the same number the one that excludes it counts.
    tightest = [
        *([max(least, key=lambda bound: (bound[0], bound[1] == "above"))] if least else []),
        *([min(most, key=lambda bound: (bound[0], bound[1] != "below"))] if most else []),
    ]
    return "".join(
        f" {word} {value:{',' if annotation is int else 'g'}}" for value, word in tightest
    )


def _named(metadata: Iterable[Any]) -> tuple[str, ...]:
    found = (item for item in _flat(metadata) if isinstance(item, Choices))
    return tuple(name for item in found for name in item.names())


def _flat(metadata: Iterable[Any]) -> Iterator[Any]:
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from _flat(item.metadata)
        else:
            yield item
