"""Options that several commands share, so that they are spelled and explained alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Device", "Json", "Out", "Quiet", "size"]


def size(text: str) -> int:
    """Parser of a size option: ``512``, ``8k``, ``1M``. Usage error for anything else."""
    from wuneng.errors import InputError
    from wuneng.recipe.sizes import parse_size

    try:
        return parse_size(text)
    except InputError as error:
        raise typer.BadParameter(str(error)) from None


Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help="auto, cpu, cuda, cuda:N or mps; auto takes a GPU where there is one.",
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print the result as JSON on stdout, progress on stderr."),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Write into this directory."),
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Print no progress, only the result and warnings."),
]
