"""``wuneng train``: train every arm of a recipe, or say what that would take."""

from __future__ import annotations

import sys
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from wuneng_cli import options
from wuneng_cli.render import print_json, print_line, print_renderable, print_text

if TYPE_CHECKING:
    from wuneng.recipe import Recipe
    from wuneng.train import Results

__all__ = ["register", "train"]

_EXAMPLES = """Examples:

\b
  wuneng train recipes/quickstart.yaml
  wuneng train recipes/text.yaml --set data.train=books/ --set training.steps=2k
  wuneng train recipes/text.yaml --set arms.mha.training.learning_rate=3e-4
  wuneng train recipes/fineweb-130m.yaml --dry-run
  wuneng train recipes/upgrade-llama.yaml --set init_from=my-llama --set data.train=texts/
  wuneng train runs/quickstart/recipe.yaml --out again    repeat a finished run

A run that was stopped or killed continues where it was when the same command is given again. Sizes
may be written 8k or 1M (powers of 1024).
"""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(
        "train", short_help="Train the arms of a recipe and compare them.", epilog=_EXAMPLES
    )(train)


def train(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A YAML file, such as those in recipes/.")
    ],
    changes: options.Changes = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="The run directory. [default: runs/<name of the recipe>, numbered if taken]",
        ),
    ] = None,
    resume: Annotated[
        str,
        typer.Option(
            "--resume",
            metavar="auto|never|DIR",
            help="auto continues an unfinished run of the same recipe, never starts a new one, a "
            "run directory continues that run.",
        ),
    ] = "auto",
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Train nothing: print parameters by part, what state and middle heads add, "
            "tokens, FLOPs, memory, disk and time; with --verbose the resolved recipe too.",
        ),
    ] = False,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure/--no-measure",
            help="With --dry-run: estimate the time from about a second of each arm's steps.",
        ),
    ] = True,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    verify: options.Verify = True,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Train the arms of RECIPE one after another, on the same batches from the same seed, and
    compare them.

    Everything lands in a run directory: the resolved recipe, metrics.jsonl, checkpoints and the
    trained model of each arm, and results.json with the arms side by side.
    """
    from wuneng.device import require_one_process
    from wuneng.recipe import load_recipe

    if not dry_run:
        require_one_process()
    overrides = list(changes or [])
    if device is not None:
        overrides.append(f"device={device}")
    loaded = load_recipe(recipe, overrides)
    from wuneng.ops.backend import check_environment

    check_environment()
    if dry_run:
        _print_plan(loaded, measure=measure, as_json=as_json, verbose=verbose)
    else:
        _train(loaded, out, resume, verify=verify, as_json=as_json, quiet=quiet)


def _print_plan(recipe: Recipe, *, measure: bool, as_json: bool, verbose: bool) -> None:
    from wuneng_cli.dry_run import plan, plan_lines, plan_table

    planned = plan(recipe, measure=measure)
    if as_json:
        print_json(planned)
        return
    if verbose:
        from wuneng.recipe import dump_recipe

        print_line(dump_recipe(recipe))
    print_renderable(plan_table(planned))
    for line in plan_lines(planned):
        print_text(line)
    if recipe.data.kind == "text":
        from wuneng.data.cache_directory import cache_root

        print_line(f"tokenised text is kept in {cache_root(recipe.data.cache_dir)}")


def _train(
    recipe: Recipe, out: Path | None, resume: str, *, verify: bool, as_json: bool, quiet: bool
) -> None:
    from wuneng.records.user_cache import OLD_CACHE
    from wuneng.train import make_display, run
    from wuneng_cli.dry_run import sources_of

    display = make_display(quiet=quiet, to_stderr=as_json)
    if OLD_CACHE.is_dir():
        display.note(
            f"{OLD_CACHE} is of an earlier version and not used any more: `wuneng cache clear` "
            "deletes it"
        )
    sources = sources_of(recipe, check=verify)
    line = ["wuneng", *sys.argv[1:]]
    results = run(recipe, out, resume, display, command_line=line, sources=sources, verify=verify)
    if as_json:
        print_json({"directory": str(results.directory), **results.record})
        return
    print_renderable(results.table)
    if results.paired is not None:
        print_renderable(results.paired)
    print_text(results.sentence)
    print_line(f"\nEverything is in {results.directory}.")
    for title, command in zip(("Next:", "     "), _next(results, recipe.data.kind), strict=False):
        print_line(f"{title} {command}")


def _next(results: Results, kind: str) -> list[str]:
    """Commands that work for this run as it is, without a network."""
    run = quote(str(results.directory))
    if kind == "text":
        return [f'wuneng generate {run} --prompt "..."', f"wuneng eval {run}"]
    # A model of synthetic tasks neither reads nor writes.
    has_state = any(arm["kind"] == "hybrid" for arm in results.record["arms"].values())
    return [f"wuneng eval {run}", *([f"wuneng eval {run} --state zero"] if has_state else [])]
