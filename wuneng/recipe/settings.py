"""The base of every part of a recipe: strict types, unknown keys refused."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict

__all__ = ["Choices", "Settings", "settings_classes"]


@dataclass(frozen=True)
class Choices:
    """Beside the validator of a text whose choices are found at run time: what they are."""

    names: Callable[[], Sequence[str]]


class Settings(BaseModel):
    """A mapping in a recipe whose keys are known in advance.

    Types are strict: text is not taken for a number, nor ``true`` for 1. The numeric types of
    ``wuneng.recipe.sizes`` accept the ways people write numbers.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, validate_default=True, protected_namespaces=()
    )


def settings_classes(annotation: Any) -> Iterator[type[Settings]]:
    """The parts of a recipe that a field of this type may hold: members of unions, items of lists,
    values of mappings."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    elif get_origin(annotation) is not Literal:
        for argument in get_args(annotation):
            if not isinstance(argument, str | types.NoneType):
                yield from settings_classes(argument)
