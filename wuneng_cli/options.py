"""Options that several commands share, so that they are spelled and explained alike."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, Concatenate, NamedTuple

import typer

__all__ = [
    "Arm",
    "Changes",
    "Device",
    "Dtype",
    "Json",
    "Model",
    "Output",
    "TrustRemoteCode",
    "Verify",
    "count",
    "out",
    "size",
    "tokens",
    "with_output",
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


def count(flag: str, metavar: str, least: int, text: str) -> Any:
    """The option of a number of things, from ``least`` on."""
    return typer.Option(flag, metavar=metavar, min=least, callback=counted, help=text)


def tokens(flag: str, text: str, least: int = 1) -> Any:
    """The option of a number of tokens, from ``least`` on."""

    def enough(text: str) -> int:
        if (number := size(text)) < least:
            raise typer.BadParameter(f"expected {least} or more, got {number}")
        return number

    return typer.Option(flag, metavar="N", parser=enough, help=text)


def out(text: str) -> Any:
    """The option --out; ``text`` says what goes there."""

    def named(value: str) -> Path:
        if not value.strip():  # as an unset variable of a script leaves it: not the directory here
            raise typer.BadParameter(f"expected a directory, got {value!r}")
        return Path(value)

    return typer.Option("--out", metavar="DIR", parser=named, help=text)


Arm = Annotated[str | None, typer.Option("--arm", metavar="NAME", help="Which arm of a run.")]
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
_Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Print no progress, only the result and warnings."),
]
_Verbose = Annotated[
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


class Output(NamedTuple):
    """What a command prints: --json, --quiet and --verbose."""

    as_json: bool
    quiet: bool
    verbose: bool


def with_output(command: Callable[Concatenate[Output, ...], None]) -> Callable[..., None]:
    """``command`` with --json, --quiet and --verbose after its own options, as one argument."""

    def complete(
        *, as_json: Json = False, quiet: _Quiet = False, verbose: _Verbose = False, **own: Any
    ) -> None:
        command(Output(as_json, quiet, verbose), **own)

    _, *own = signature(command, eval_str=True).parameters.values()
    *shared, _ = signature(complete, eval_str=True).parameters.values()
    parameters = [one.replace(kind=Parameter.KEYWORD_ONLY) for one in (*own, *shared)]
    update_wrapper(complete, command)
    # Typer reads the options from both.
    complete.__annotations__ = {one.name: one.annotation for one in parameters}
    complete.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return complete
