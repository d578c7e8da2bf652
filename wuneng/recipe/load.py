"""Reading a recipe: file, overrides, checks; and the variants of it that a sweep or study names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from wuneng.errors import RecipeError, nearest, reason, shortened
from wuneng.recipe.arms import DEFAULT_ARMS
from wuneng.recipe.dump import yaml_text
from wuneng.recipe.messages import describe
from wuneng.recipe.older import complete_older_recipe
from wuneng.recipe.overrides import apply_override, apply_value
from wuneng.recipe.schema import LONGEST_NAME, Recipe
from wuneng.recipe.source import FieldPath, Source, read_yaml
from wuneng.recipe.sweep import points_of, written

__all__ = ["WrittenRecipe", "check_recipe", "load_recipe", "read_written"]


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and check a recipe.

    Args:
        path: a YAML file.
        overrides: ``path.to.key=value``, applied in order.

    Raises:
        RecipeError: one line for each problem, with file and line (or the override), field,
            what was expected and what came.
    """
    return read_written(path, overrides).recipe


@dataclass(frozen=True)
class WrittenRecipe:
    """A recipe, and what was written, from which variants of it are made."""

    recipe: Recipe
    source: Source

    def variant(self, values: Mapping[str, Any], *, why: str = "sweep") -> Recipe:
        """The single run with ``values`` in place of what the fields at these paths say.

        A built-in arm follows what it is built from, which a resolved recipe would not let it do.

        Raises:
            RecipeError: it is no recipe then; names the path and the value.
        """
        source = Source(deepcopy(self.source.data), dict(self.source.places))
        for name in ("sweep", "study"):
            source.data.pop(name, None)
        for path, value in values.items():
            apply_value(source, path.split("."), value, f"{why}: {path}={written(value)}")
            _name_arms(source)
        return check_recipe(source)

    def text(self, settled: Mapping[str, Any]) -> str:
        """As YAML that loads to the same variants; ``settled`` are fields by their path."""
        source = Source(deepcopy(self.source.data), {})
        for path, value in settled.items():
            apply_value(source, path.split("."), value, path)
        return yaml_text(source.data)


def read_written(path: Path, overrides: Sequence[str] = ()) -> WrittenRecipe:
    """As ``load_recipe``; of a sweep every point is checked as well."""
    path = Path(path)
    try:
        _check_file(path)
    except OSError as error:
        name = shortened(str(path), 300)
        raise RecipeError(f"recipe {name} cannot be read: {error.strerror}") from None
    source = read_yaml(path)
    if not isinstance(source.data, dict):
        got = "nothing" if source.data is None else type(source.data).__name__
        raise RecipeError(f"{path}: expected a mapping with model, data and training, got {got}")
    complete_older_recipe(source.data)
    _name_arms(source)
    for override in overrides:
        apply_override(source, override)
        _name_arms(source)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem)[:LONGEST_NAME].strip("-._")
    source.data.setdefault("name", stem or "run")
    _take_first_values(source)
    read = WrittenRecipe(check_recipe(source), source)
    for point in points_of(read.recipe.sweep):
        read.variant(point.values)
    return read


def _take_first_values(source: Source) -> None:
    """The recipe itself is that of the first point: what is swept need not be said twice."""
    sweep = source.data.get("sweep")
    for path, values in sweep.items() if isinstance(sweep, dict) else ():
        if isinstance(path, str) and isinstance(values, list) and values:
            told = f"sweep: {path}={written(values[0])}"
            apply_value(source, path.split("."), values[0], told)


def check_recipe(source: Source) -> Recipe:
    """The recipe that plain data states. RecipeError with one line for each problem."""
    try:
        return Recipe.model_validate(source.data)
    except ValidationError as error:
        raise RecipeError(describe(error, source)) from None
    except Exception as error:
        where = source.place(_troubled_section(source))
        raise RecipeError(f"{where}: cannot be checked: {reason(error)}") from error


def _troubled_section(source: Source) -> FieldPath:
    """The section over which a check breaks down, so that the message can name its line."""
    for key, value in source.data.items():
        try:
            Recipe.model_validate({key: value})
        except ValidationError:
            continue
        except Exception:
            return (key,)
    return ()


def _check_file(path: Path) -> None:
    if path.exists() and not path.is_dir():
        return
    if path.is_dir():
        inside = sorted(p.name for p in path.glob("*.y*ml"))
        listing = f"; it holds {', '.join(inside)}" if inside else ""
        raise RecipeError(f"recipe {path} is a directory, expected a YAML file{listing}")
    siblings = [str(p) for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    raise RecipeError(f"recipe {path} does not exist.{nearest(str(path), siblings)}")


def _name_arms(source: Source) -> None:
    """Spell ``arms: [a, b]``, or none, as a mapping, so that overrides can reach into an arm."""
    arms = source.data.setdefault("arms", list(DEFAULT_ARMS))
    if isinstance(arms, list) and all(isinstance(name, str) for name in arms):
        repeated = sorted({name for name in arms if arms.count(name) > 1})
        if repeated:
            raise RecipeError(f"{source.place(('arms',))}: arms names {repeated[0]} twice")
        for index, name in enumerate(arms):
            source.places[("arms", name)] = source.place(("arms", index))
        source.data["arms"] = {name: {} for name in arms}
