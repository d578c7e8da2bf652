"""``--set path.to.key=value``: changes to a recipe that apply before it is checked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from wuneng.errors import RecipeError, nearest, shortened
from wuneng.recipe.schema import Recipe
from wuneng.recipe.source import DEEPEST, FieldPath, Source, dotted, parse_value
from wuneng.recipe.sweep import several_values

__all__ = ["apply_override", "apply_value"]


def apply_override(source: Source, override: str) -> None:
    """Change ``source`` in place. The value is read as YAML; list entries go by their number.

    Raises:
        RecipeError: the override is malformed or leads through something that is not there.
            Whether the field exists is left to the check of the whole recipe.
    """
    flag = f"--set {shortened(override, 100)}"
    target, equals, text = override.partition("=")
    keys = target.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(f"{flag}: expected path.to.key=value, as in training.steps=100")
    if len(keys) > DEEPEST:
        raise RecipeError(f"{flag}: {len(keys):,} fields deep, expected at most {DEEPEST}")
    value = _parsed(text, flag, target)
    if not isinstance(source.data, dict):
        return
    if several := several_values(Recipe, keys, text):
        if not all(several):
            raise RecipeError(f"{flag}: expected values between the commas")
        value = [_parsed(part, flag) for part in several]
        keys = ["sweep", target.strip()]
    elif isinstance(source.data.get("sweep"), dict):
        source.data["sweep"].pop(target.strip(), None)  # the last that is said of a field holds
    apply_value(source, keys, value, flag)


def _parsed(text: str, flag: str, target: str = "") -> Any:
    try:
        target.encode("utf-8")
        return parse_value(text)
    except UnicodeEncodeError:
        raise RecipeError(f"{flag}: expected UTF-8 text, got other bytes") from None
    except RecipeError as error:
        raise RecipeError(f"{flag}: {error}") from None


def apply_value(source: Source, keys: Sequence[str], value: Any, flag: str) -> None:
    """Put ``value`` at ``keys``; ``flag`` is where messages say that it was written.

    Raises:
        RecipeError: the way there leads through something that has no fields.
    """
    path = _assign(source.data, keys, value, flag)
    source.places = {p: place for p, place in source.places.items() if p[: len(path)] != path}
    source.places[path] = flag
    for length in range(1, len(path)):  # mappings that were made on the way
        source.places.setdefault(path[:length], flag)


def _assign(data: Any, keys: Sequence[str], value: Any, flag: str) -> FieldPath:
    """Put ``value`` at ``keys``, making mappings on the way; returns the path taken."""
    path: FieldPath = ()
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        step: str | int = key
        if isinstance(data, list):
            step = _index(data, key, path, flag)
        elif not isinstance(data, dict):
            raise RecipeError(
                f"{flag}: {dotted(path)} is {shortened(repr(data))}, which has no fields"
            )
        elif path == ("arms",) and not last and key not in data:
            raise RecipeError(
                f"{flag}: no arm '{shortened(key)}' in this recipe: "
                f"{shortened(', '.join(data), 300)}.{nearest(key, data)}"
            )
        path = (*path, step)
        if last:
            data[step] = value
        elif isinstance(data, dict):
            if data.get(key) is None:
                data[key] = {}
            data = data[key]
        else:
            data = data[step]
    return path


def _index(data: list[Any], key: str, path: FieldPath, flag: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", key) or int(key) >= len(data):
        raise RecipeError(
            f"{flag}: expected the number of an entry of {dotted(path)}, "
            f"0 to {len(data) - 1}, got {shortened(key)!r}"
        )
    return int(key)
