"""The ``wuneng`` command: one group, one module for each command.

Nothing here, nor at the top of a command's module, imports torch: help answers at once.
"""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from wuneng.errors import WuNengError
from wuneng.foreign import folded, shown
from wuneng_cli import bench, cache, convert, generate, recipe, report, train
from wuneng_cli import eval as eval_command
from wuneng_cli import inspect as inspect_command
from wuneng_cli.render import print_error, print_line
from wuneng_cli.silence import silenced
from wuneng_cli.waiting_threads import wait_briefly

__all__ = ["app", "main"]

_EXAMPLES = """Examples:

\b
  wuneng train recipes/quickstart.yaml
                                    compare three arms on the CPU
  wuneng train my.yaml --dry-run    check a recipe and see its sizes
  wuneng eval                       score the latest run on its held-out data
  wuneng inspect runs/text --text FILE
                                    what each head does: memory, rates, states
  wuneng generate runs/text --prompt "It was"
                                    let a model that was trained on text write
  wuneng convert my-llama upgraded  add state heads to a model you have
  wuneng bench --seq-len 8k         speed and memory over lengths up to 8k
  wuneng report runs/text runs/bench/small
                                    one page about runs and benchmarks
  wuneng recipe --fields            what a recipe may say
  wuneng cache                      what is kept between commands, and where

Exit codes: 0 success, 1 a failure while running, 2 bad input, 130 stopped by Ctrl-C.
"""


#: click's class; typer brings a click of its own from 0.26 on.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


class _Commands(TyperGroup):
    """Reports the errors that are meant for the user in one message, without a traceback."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Parse; what is quoted of a mistaken command line is shown, not obeyed."""
        try:
            return super().make_context(*args, **kwargs)
        except _UsageError as error:
            _make_harmless(error)
            raise

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command; its exit code is the error's."""
        try:
            with silenced():
                return super().invoke(ctx)
        except _UsageError as error:
            _make_harmless(error)
            raise
        except WuNengError as error:
            print_error(str(error))
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            print_error("interrupted")
            raise typer.Exit(130) from None
        except MemoryError as error:
            print_error(f"not enough memory: {str(error) or 'the system gave no more'}")
            raise typer.Exit(1) from None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            print_error(f"the disk is full: {error}")
            raise typer.Exit(1) from None


def _make_harmless(error: Exception) -> None:
    if type(error).__name__ == "NoArgsIsHelpError":
        return  # the page of --help, which is laid out already
    error.message = shown(_of_a_number(error) or error.message)  # type: ignore[attr-defined]
    message = error.format_message()  # type: ignore[attr-defined]
    # click prints "Error: " before it
    wrapped = folded(f"Error: {message}", sys.stderr).removeprefix("Error: ")
    error.format_message = lambda: wrapped  # type: ignore[attr-defined]


def _of_a_number(error: Exception) -> str:
    """``expected 1 or more, got '0'``, in the words of every other error here; typer's own sentence
    about a number that is too large or small does not tell what came. Empty: it is no such."""
    cause = error.__cause__ or error.__context__
    if not isinstance(cause, ValueError) or not hasattr(cause, "errors"):
        return ""
    found = cause.errors()
    if not found or "input" not in found[0]:
        return ""
    bounds, came = found[0].get("ctx", {}), f", got {found[0]['input']!r}"
    if "ge" in bounds:
        return f"expected {bounds['ge']} or more{came}"
    if "le" in bounds:
        return f"expected at most {bounds['le']}{came}"
    return error.message + came  # type: ignore[attr-defined]


class _PlainFormatter(logging.Formatter):
    """Log lines name files too, and are read by people."""

    def format(self, record: logging.LogRecord) -> str:
        return folded(super().format(record), sys.stderr)


app = typer.Typer(
    name="wuneng",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog=_EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from wuneng import __version__

        print_line(f"wuneng {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Train, evaluate and run hybrid RWKV-7 + attention language models, each beside a plain
    attention baseline of the same size that saw the same tokens.
    """


#: In the order of the help.
_COMMANDS: tuple[tuple[str, ModuleType, Callable[..., None]], ...] = (
    ("train", train, train.train),
    ("eval", eval_command, eval_command.evaluate),
    ("inspect", inspect_command, inspect_command.inspect),
    ("generate", generate, generate.generate),
    ("convert", convert, convert.convert),
    ("bench", bench, bench.bench),
    ("report", report, report.report),
    ("recipe", recipe, recipe.recipe),
)
for _name, _module, _command in _COMMANDS:
    app.command(_name, short_help=_module.SHORT_HELP, epilog=_module.EXAMPLES)(_command)
cache.register(app)


def main() -> None:
    """Entry point of the console script."""
    wait_briefly()
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_PlainFormatter())
    app(prog_name="wuneng")


if __name__ == "__main__":
    main()
