"""``wuneng recipe``: what a recipe may say, and what one says once it is resolved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wuneng_cli import options
from wuneng_cli.render import print_json, print_line, print_renderable

if TYPE_CHECKING:
    from wuneng.recipe.fields import Section
    from wuneng.tables import Table

__all__ = ["EXAMPLES", "SHORT_HELP", "recipe"]

SHORT_HELP = "Explain the fields of a recipe, or resolve one."
EXAMPLES = """Examples:

\b
  wuneng recipe --fields  every field: what it takes, its default, its meaning
  wuneng recipe --fields --markdown
                          the same as docs/recipe.md
  wuneng recipe recipes/quickstart.yaml
                          a recipe with every default written out
  wuneng recipe recipes/text.yaml --set arms.mha.training.learning_rate=3e-4
"""


def recipe(
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RECIPE]", show_default=False, help="A YAML file to resolve and print."
        ),
    ] = None,
    fields: Annotated[
        bool,
        typer.Option("--fields", help="List every field with its type, default and meaning."),
    ] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="With --fields: as a page of documentation.")
    ] = False,
    changes: options.Changes = None,
    as_json: options.Json = False,
) -> None:
    """Print RECIPE as `wuneng train` understands it: checked, with every default written out and
    every arm complete; or, with --fields, what the fields of a recipe are.
    """
    from wuneng.errors import InputError

    if fields == (path is not None):
        got = "both" if fields else "neither"
        raise InputError(f"expected either a recipe to resolve or --fields, got {got}")
    if fields:
        if changes:
            raise InputError("--set changes a recipe; with --fields there is none")
        _print_fields(markdown=markdown, as_json=as_json)
        return
    if markdown:
        raise InputError("--markdown is a form of --fields; a recipe is printed as YAML")
    from wuneng.recipe import dump_recipe, load_recipe

    assert path is not None
    loaded = load_recipe(path, list(changes or []))
    if as_json:
        import yaml

        print_json(yaml.safe_load(dump_recipe(loaded)))
    else:
        print_line(dump_recipe(loaded).rstrip("\n"))


def _print_fields(*, markdown: bool, as_json: bool) -> None:
    from dataclasses import asdict

    from wuneng.errors import InputError
    from wuneng.recipe.fields import recipe_fields
    from wuneng.recipe.fields_page import fields_page

    if markdown and as_json:
        raise InputError("expected one of --markdown and --json, got both")
    sections = recipe_fields()
    if as_json:
        print_json({"schema": 1, "sections": [asdict(section) for section in sections]})
    elif markdown:
        print_line(fields_page(sections).rstrip("\n"))
    else:
        for section in sections:
            print_renderable(field_table(section))


def field_table(section: Section) -> Table:
    """The fields of a section, what they take and what they mean."""
    from wuneng.tables import Column, Table

    table = Table(
        f"{section.path or 'a recipe'}{section.condition and f' ({section.condition})'}: "
        f"{section.meaning}".replace("``", "`"),
        [
            Column("field", name=True),
            Column("takes", text=True),
            Column("meaning", text=True),
        ],
    )
    for field in section.fields:
        default = "required" if field.required else field.default and f"default: {field.default}"
        takes = f"{field.type} [{default}]" if default else field.type
        table.add_row(field.path, takes, field.meaning.replace("``", "`"))
    return table
