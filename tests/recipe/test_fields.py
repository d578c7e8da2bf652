"""Every field of a recipe is explained where it is defined, and listed once."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Annotated, Literal

import pytest
from pydantic import Field, StringConstraints, ValidationError

from wuneng.kinds import kind_names
from wuneng.recipe import Recipe
from wuneng.recipe.field_types import choices, written_default, written_type
from wuneng.recipe.fields import docstrings, recipe_fields
from wuneng.recipe.fields_page import fields_page
from wuneng.recipe.settings import Settings, settings_classes
from wuneng.recipe.sizes import Count, Fraction, PositiveCount, Real, Width
from wuneng.recipe.training import Training

FIELDS = {field.path: field for section in recipe_fields() for field in section.fields}


def classes(settings: type[Settings]) -> set[type[Settings]]:
    inner = [c for f in settings.model_fields.values() for c in settings_classes(f.annotation)]
    return {settings, *(found for cls in inner for found in classes(cls))}


@pytest.mark.parametrize("settings", sorted(classes(Recipe), key=lambda cls: cls.__name__))
def test_every_field_has_a_docstring(settings: type[Settings]) -> None:
    assert set(settings.model_fields) - set(docstrings(settings)) == set()
    assert settings.__doc__ != Settings.__doc__, "the mapping as a whole is explained as well"


@pytest.mark.parametrize("settings", sorted(classes(Recipe), key=lambda cls: cls.__name__))
def test_what_has_no_default_is_required(settings: type[Settings]) -> None:
    """Of pydantic 2.7 a field got the default of another one that shared its type."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(settings))).body
    assert isinstance(definition, ast.ClassDef)
    written = {
        field.target.id: field.value is None
        for field in definition.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }
    read = {name: field.is_required() for name, field in settings.model_fields.items()}
    assert {name: read[name] for name in written} == written


def test_every_field_is_listed_once() -> None:
    sections = recipe_fields()
    paths = [(s.condition, field.path) for s in sections for field in s.fields]
    assert len(set(paths)) == len(paths)
    listed = {path.rpartition(".")[2] for path in FIELDS}
    assert listed == {name for cls in classes(Recipe) for name in cls.model_fields}
    assert {"seed", "model.hidden_size", "arms.NAME.lora.rank", "data.tasks.N.pairs"} <= set(FIELDS)
    assert {"data.train.dataset", "data.tasks.N.curriculum.N.until"} <= set(FIELDS)


def test_what_is_listed_elsewhere_is_named() -> None:
    assert FIELDS["arms.NAME.model"].type == "mapping as model"
    assert FIELDS["arms.NAME.distill"].type == "mapping | null as distill"
    type_ = FIELDS["arms.NAME.training"].type
    assert type_ == "mapping as training, learning_rate to clip"
    names = list(Training.model_fields)
    assert names.index("clip") + 1 == names.index("steps"), "those between are an arm's own"


def test_docstrings_are_inherited_and_in_one_line() -> None:
    found = docstrings(Training)
    assert found["clip"] == "Largest global gradient norm; 0 switches clipping off."
    assert found["steps"] == "Optimiser steps; either this or ``tokens``."
    assert "\n" not in docstrings(Recipe)["init_from"]


def test_the_cells_of_the_page_are_whole() -> None:
    rows = [line for line in fields_page(recipe_fields()).splitlines() if line.startswith("|")]
    assert {row.replace("\\|", "").count("|") for row in rows} == {5}


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Count, "whole number from 0"),
        (PositiveCount | None, "whole number from 1 | null"),
        (Width, "whole number from 1 to 1,048,576"),
        (Annotated[Width, Field(ge=3)], "whole number from 3 to 1,048,576"),
        (Annotated[Fraction, Field(gt=0.0)], "number above 0 to 1"),
        (Annotated[Fraction, Field(gt=0.0, lt=1.0)], "number above 0 below 1"),
        (Annotated[Real, Field(le=0.5)], "number to 0.5"),
        (Annotated[str, StringConstraints(pattern="^[ab]$")], "text matching ^[ab]$"),
        (list[PositiveCount], "list of whole numbers from 1"),
        (list[Literal["a", "b"]] | None, "list of a | b | null"),
        (dict[str, float], "mapping of numbers"),
        (bool, "true | false"),
    ],
)
def test_types_in_words(annotation: object, words: str) -> None:
    assert written_type(annotation) == words


def test_choices_that_are_found_at_run_time() -> None:
    found = {field.path: field for section in recipe_fields() for field in section.fields}
    for name, room in (("state_kind", "state"), ("cross_head", "middle")):
        assert found[f"model.{name}"].choices == kind_names(room)
        assert found[f"model.{name}"].type == " | ".join(kind_names(room))


def test_choices() -> None:
    assert choices(Literal["a", "b"] | None) == ("a", "b")
    assert choices(bool) == ("true", "false")
    assert choices(bool | list[int]) == ()
    assert choices(str) == ()


def test_defaults_are_spelled_as_in_a_recipe() -> None:
    values = [None, True, "", "auto", 1e-5, 2.0, [1, 2], {}, {"a": 1}]
    written = ["null", "true", '""', "auto", "1e-05", "2", "[1, 2]", "{}", "[a]"]
    assert [written_default(value) for value in values] == written


@pytest.mark.parametrize("path", [path for path in FIELDS if path.startswith("model.")])
def test_what_is_said_of_a_field_holds(path: str) -> None:
    """The words come from annotations; here values are tried against them."""
    name, field = path.removeprefix("model."), FIELDS[path]
    model = Recipe.model_fields["model"].annotation
    assert model is not None
    for value in field.choices:
        model.model_validate({name: value == "true" if value in ("true", "false") else value})
    if "from 1" in field.type and "list" not in field.type:
        with pytest.raises(ValidationError, match="greater than or equal to 1"):
            model.model_validate({name: 0})
    if "null" not in field.type:
        with pytest.raises(ValidationError):
            model.model_validate({name: None})
