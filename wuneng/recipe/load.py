"""Reading a recipe: file, overrides, checks; and writing it back, resolved."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from wuneng.errors import RecipeError, nearest, reason, shortened
from wuneng.recipe.arms import DEFAULT_ARMS, built_in
from wuneng.recipe.messages import describe
from wuneng.recipe.overrides import apply_override
from wuneng.recipe.resolve import SHARED_STARTS
from wuneng.recipe.schema import LONGEST_NAME, Recipe
from wuneng.recipe.source import FieldPath, Source, read_yaml

__all__ = ["check_recipe", "dump_recipe", "load_recipe"]


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and check a recipe.

    Args:
        path: a YAML file.
        overrides: ``path.to.key=value``, applied in order.

    Raises:
        RecipeError: one line for each problem, with file and line (or the override), field,
            what was expected and what came.
    """
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
    _name_arms(source)
    for override in overrides:
        apply_override(source, override)
        _name_arms(source)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem)[:LONGEST_NAME].strip("-._")
    source.data.setdefault("name", stem or "run")
    return check_recipe(source)


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


def dump_recipe(recipe: Recipe) -> str:
    """The recipe with every default written out, as YAML that loads to an equal recipe."""
    data = recipe.model_dump()
    if any(arm.init_from for arm in recipe.arms.values()):
        # What the recipe leaves to the model it starts from must not turn into a demand.
        data["model"] = recipe.model.model_dump(exclude_unset=True)
    data["arms"] = {name: _arm_changes(recipe, name) for name in recipe.arms}
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _arm_changes(recipe: Recipe, name: str) -> dict[str, Any]:
    """What sets an arm apart. Fields that a built-in arm changes are always written, else loading
    would change them again."""
    arm = recipe.arms[name]
    base = recipe.model.model_dump()
    own = arm.model.model_dump(exclude_unset=arm.init_from is not None)
    pinned = built_in(name, recipe.model)
    shared = recipe.training.model_dump()
    changes = {
        "model": {k: v for k, v in own.items() if v != base[k] or k in pinned},
        "match": arm.match,
        "training": {k: v for k, v in arm.training.model_dump().items() if v != shared[k]},
    }
    start = arm.model_dump(include={"lora", *SHARED_STARTS})
    everyone = {"lora": None} | recipe.model_dump(include=set(SHARED_STARTS))
    return changes | {k: v for k, v in start.items() if v != everyone[k]}


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


class _Dumper(yaml.SafeDumper):
    """Writes lists of plain values on one line, and everything in full, without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_list(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.Node:
    plain = all(not isinstance(item, dict | list) for item in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=plain)


_Dumper.add_representer(list, _represent_list)
