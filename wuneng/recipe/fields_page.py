"""docs/recipe.md: every field of a recipe as a page of Markdown."""

from __future__ import annotations

from collections.abc import Iterable

from wuneng.recipe.fields import RecipeField, Section

__all__ = ["fields_page"]

_HEAD = """# The fields of a recipe

Written by `wuneng recipe --fields --markdown` from the docstrings in `wuneng/recipe`; change those.

Paths are as `--set` takes them: `wuneng train RECIPE --set training.steps=2k`. In a path, NAME
stands for an arm's name and N for a place in a list, counted from 0. Whole numbers may carry the
suffix k, M or G (powers of 1024). What several fields must agree on is checked when a recipe is
loaded: `wuneng recipe RECIPE` prints one with every default written out.
"""


def fields_page(sections: Iterable[Section]) -> str:
    """The whole page, a table for each mapping of a recipe."""
    return "\n".join([_HEAD, *map(_section, sections)])


def _section(section: Section) -> str:
    heading = f"`{section.path}`" if section.path else "The recipe itself"
    if section.condition:
        heading += f" with `{section.condition}`"
    rows = ["| field | takes | default | meaning |", "|---|---|---|---|"]
    rows += map(_row, section.fields)
    return "\n".join([f"## {heading}", "", _text(section.meaning), "", *rows, ""])


def _row(field: RecipeField) -> str:
    default = "*required*" if field.required else _code(field.default)
    return f"| {_code(field.path)} | {_cell(field.type)} | {default} | {_text(field.meaning)} |"


def _text(docstring: str) -> str:
    """Docstrings quote code with two backticks, Markdown with one."""
    return _cell(docstring.replace("``", "`"))


def _code(text: str) -> str:
    return f"`{_cell(text)}`" if text else ""


def _cell(text: str) -> str:
    """Text that does not end the cell it stands in."""
    return text.replace("|", "\\|")
