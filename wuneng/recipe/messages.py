"""What pydantic found wrong, a line each: the place, the field, what was expected, what came."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Union

from pydantic import BaseModel, ValidationError

from wuneng.errors import nearest, shortened
from wuneng.recipe.data import MixturePart
from wuneng.recipe.schema import Recipe
from wuneng.recipe.settings import settings_classes
from wuneng.recipe.source import FieldPath, Source, dotted

__all__ = ["describe"]

_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "list_type": "a list",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "greater_than": "a value above {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "a value below {lt}",
    "less_than_equal": "{le} or less",
    "literal_error": "{expected}",
    "string_too_long": "at most {max_length} characters",
    "string_pattern_mismatch": "text that matches {pattern}",
    "too_short": "at least {min_length} entries",
    "too_long": "at most {max_length} entries",
}


#: More problems than this are counted and not told.
_MOST_PROBLEMS = 20


def describe(error: ValidationError, source: Source) -> str:
    """One line for each problem, in the order of the fields; the first twenty of them."""
    lines: dict[str, None] = {}
    found = error.errors(include_url=False)
    for index, problem in enumerate(found):
        if len(lines) >= _MOST_PROBLEMS:
            lines[f"and {len(found) - index:,} more problems"] = None
            break
        for path, text in _problems(problem, source.data):
            lines[f"{source.place(path)}: {shortened(text, 600)}"] = None
    return "\n".join(lines)


def _problems(problem: Mapping[str, Any], data: Any) -> Iterator[tuple[FieldPath, str]]:
    located: FieldPath = problem["loc"]
    path = tuple(part for part in located if not _is_tag(part))
    name, kind, context = dotted(path), problem["type"], problem.get("ctx", {})
    if kind == "contradiction":
        for rule_path, text in context["problems"]:
            yield rule_path, f"{dotted(rule_path)}: {text}"
    elif kind == "extra_forbidden":
        known = _known_fields(located[:-1])
        yield path, f"{name} is not a known field.{nearest(str(path[-1]), known)}"
    elif kind == "missing":
        yield path, f"{name} is required"
    else:
        expected = _EXPECTED.get(kind, problem["msg"]).format(**context)
        wrong = problem["input"]
        written = context.get("written", wrong)
        hint = nearest(written, _choices(context)) if isinstance(written, str) else ""
        got = "nothing" if wrong is None else repr(wrong)
        yield path, f"{name or 'recipe'}: expected {expected}, got {shortened(got)}{_after(hint)}"


def _after(hint: str) -> str:
    return f".{hint}" if hint else ""


def _choices(context: Mapping[str, Any]) -> list[str]:
    """The values of a Literal, which pydantic spells ``'a', 'b' or 'c'``, and of a tagged union."""
    if "choices" in context:
        return list(context["choices"])
    return [part for part in str(context.get("expected", "")).split("'")[1::2] if part]


def _is_tag(part: str | int) -> bool:
    """Pydantic adds which member of a union it tried; ours are tagged ``<like this>``, and the key
    of a mapping is followed by ``[key]`` when the key itself is wrong."""
    return isinstance(part, str) and (part.startswith("<") or part == "[key]")


def _known_fields(located: FieldPath) -> list[str]:
    """Names of the fields of the settings class at a location that pydantic reports."""
    annotation: Any = Recipe
    for part in located:
        candidates = list(settings_classes(annotation))
        if isinstance(part, str) and part.startswith("<"):
            annotation = Union[tuple(c for c in candidates if _answers_to(c, part))]  # noqa: UP007
            continue
        fields = [c.model_fields[part] for c in candidates if part in c.model_fields]
        if fields:
            annotation = fields[0].annotation
    names = (name for c in settings_classes(annotation) for name in c.model_fields)
    return list(dict.fromkeys(names))


def _answers_to(settings: type[BaseModel], tag: str) -> bool:
    """Whether a member of a tagged union is the one that ``tag`` names."""
    for field in ("kind", "task"):
        if field in settings.model_fields:
            return settings.model_fields[field].default == tag.strip("<>")
    return tag == ("<mixture>" if issubclass(settings, MixturePart) else "<mapping>")
