"""Options that several commands share, so that they are spelled and explained alike."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = [
    "Changes",
    "Device",
    "Dtype",
    "Json",
    "Model",
    "Quiet",
    "TrustRemoteCode",
    "Verbose",
    "Verify",
    "size",
]


def _let_dependencies_speak(wanted: bool) -> bool:
    if wanted:
        from wuneng_cli.silence import lift

        lift()
    return wanted


def size(text: str) -> int:
    """Parser of a size option: ``512``, ``8k``, ``1M``. Usage error for anything else."""
    from wuneng.errors import InputError
    from wuneng.recipe.sizes import parse_size

    try:
        return parse_size(text)
    except InputError as error:
        raise typer.BadParameter(str(error)) from None


def counted(parameter: typer.CallbackParam, value: int | None) -> int | None:
    """Callback of a number of things. Usage error for more than can be counted."""
    from wuneng.limits import LARGEST_COUNT

    if value is not None and value > LARGEST_COUNT:
        raise typer.BadParameter(f"expected at most {LARGEST_COUNT}, got {str(value)[:80]}")
    return value


def _trust(context: typer.Context, value: bool) -> bool:
    """For as long as the command runs; loaders ask ``wuneng.foreign.is_trusted``."""
    from wuneng.foreign import remote_code_trusted

    if value:
        context.with_resource(remote_code_trusted())
    return value


Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a field of the recipe, as in training.steps=500. May be repeated.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help="auto, cpu, cuda, cuda:N or mps; auto takes a GPU where there is one.",
    ),
]
Dtype = Annotated[
    str,
    typer.Option("--dtype", metavar="NAME", help="auto (as stored), fp32, bf16 or fp16."),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print the result as JSON on stdout, progress on stderr."),
]
Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="A directory in transformers format, a run, or an arm of a run. Left out: the "
        "latest run. A run stands for its trained arm with state heads (--arm names another).",
    ),
]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify/--no-verify",
        help="Compare the files of finished runs and models with their checksums before use.",
    ),
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Print no progress, only the result and warnings."),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        callback=_let_dependencies_speak,
        is_eager=True,
        help="Print everything, with the warnings and log lines of other packages.",
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        callback=_trust,
        help="Run code that comes with a model or tokenizer. Without it such code is never run.",
    ),
]
