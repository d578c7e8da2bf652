"""What every field of a recipe is: its path, what it takes, its default, and its docstring.

The settings classes are the one place that says so; help, documentation and tests read them here.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from wuneng.recipe.field_types import choices, written_default, written_type
from wuneng.recipe.schema import Recipe
from wuneng.recipe.settings import Settings, settings_classes

__all__ = ["RecipeField", "Section", "docstrings", "recipe_fields"]

#: Stand for a name or number of the user's own, as ``arms.NAME.match`` or ``data.tasks.N.pairs``.
_ANY_KEY, _ANY_INDEX = "NAME", "N"


@dataclass(frozen=True)
class RecipeField:
    """One field.

    Attributes:
        path: dotted, as ``--set`` takes it; NAME and N stand for an arm's name and a number.
        type: what it takes, in words.
        choices: the words it takes, where these are all.
        default: as a recipe would spell it; empty for a mapping whose fields have their own.
        required: whether there is no default.
        meaning: the field's docstring, in one line.
    """

    path: str
    type: str
    choices: tuple[str, ...]
    default: str
    required: bool
    meaning: str


@dataclass(frozen=True)
class Section:
    """The fields of one mapping of a recipe.

    Attributes:
        path: of the mapping; empty for the recipe itself.
        condition: the field that chooses this mapping among several, as ``kind: text``, or empty.
        meaning: what the mapping is for.
    """

    path: str
    condition: str
    meaning: str
    fields: tuple[RecipeField, ...]


def recipe_fields() -> list[Section]:
    """Every field of a recipe, by the mapping that it stands in; none is listed twice."""
    places = [(settings, ".".join(path), len(path)) for settings, path in _places(Recipe, ())]
    homes: dict[type[Settings], str] = {}
    for settings, path, _ in sorted(places, key=lambda place: place[2]):
        homes.setdefault(settings, path)
    listed = {settings: path for settings, path, _ in places if homes[settings] == path}
    listed = {settings: path for settings, path in listed.items() if not _within(settings, homes)}
    return [_section(settings, path, listed) for settings, path in listed.items()]


def docstrings(settings: type[Settings]) -> dict[str, str]:
    """The text under each field of a class and of those it inherits from, each in one line."""
    found: dict[str, str] = {}
    for parent in reversed(settings.__mro__):
        if parent is Settings or not issubclass(parent, Settings):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(parent))).body
        assert isinstance(definition, ast.ClassDef)
        for field, text in pairwise(definition.body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                found |= {field.target.id: _text_of(text)}
    return {name: text for name, text in found.items() if text}


def _text_of(statement: ast.stmt) -> str:
    value = statement.value if isinstance(statement, ast.Expr) else None
    text = value.value if isinstance(value, ast.Constant) else None
    return " ".join(text.split()) if isinstance(text, str) else ""


def _places(
    settings: type[Settings], path: tuple[str, ...]
) -> Iterator[tuple[type[Settings], tuple[str, ...]]]:
    """Where in a recipe a mapping of this kind stands, and those within it."""
    yield settings, path
    for name, field in settings.model_fields.items():
        for inner in settings_classes(field.annotation):
            yield from _places(inner, (*path, name, *_key(field.annotation, inner)))


def _key(annotation: Any, inner: type[Settings]) -> tuple[str, ...]:
    """What comes between a field's name and the fields of ``inner``: nothing, or any key of it."""
    if inner is annotation:
        return ()
    own = {list: (_ANY_INDEX,), dict: (_ANY_KEY,)}.get(get_origin(annotation), ())
    for argument in get_args(annotation):
        if get_origin(annotation) is not Literal and inner in settings_classes(argument):
            return (*own, *_key(argument, inner))
    return own


def _within(settings: type[Settings], homes: dict[type[Settings], str]) -> bool:
    """Whether all of its fields are listed with those of a class that inherits from it."""
    return any(other is not settings and issubclass(other, settings) for other in homes)


def _section(settings: type[Settings], path: str, homes: dict[type[Settings], str]) -> Section:
    texts = docstrings(settings)
    fields = []
    for name, field in settings.model_fields.items():
        own = f"{path}.{name}" if path else name
        fields.append(_field(own, field, texts.get(name, ""), homes))
    meaning = " ".join((settings.__doc__ or "").split())
    return Section(path, _condition(settings), meaning, tuple(fields))


def _field(
    path: str, field: FieldInfo, meaning: str, homes: dict[type[Settings], str]
) -> RecipeField:
    kind = written_type(field.annotation, field.metadata)
    for inner in settings_classes(field.annotation):
        home = homes.get(inner)
        if home is None:
            names = list(inner.model_fields)
            larger = next(path for other, path in homes.items() if issubclass(other, inner))
            kind += f" as {larger}, {names[0]} to {names[-1]}"
        elif not home.startswith(path):
            kind += f" as {home}"
    return RecipeField(
        path,
        kind,
        choices(field.annotation, field.metadata),
        ""
        if field.is_required()
        else written_default(field.get_default(call_default_factory=True)),
        field.is_required(),
        meaning,
    )


def _condition(settings: type[Settings]) -> str:
    for name in ("kind", "task"):
        if name in settings.model_fields:
            return f"{name}: {settings.model_fields[name].default}"
    return ""
