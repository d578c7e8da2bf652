"""``wuneng train``: train every arm of a recipe, or say what that would take."""

from __future__ import annotations

import sys
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wuneng_cli import options
from wuneng_cli.render import (
    print_json,
    print_line,
    print_passing,
    print_renderable,
    print_text,
)
from wuneng_cli.report import alone_in, leave_report, leaves_reports

if TYPE_CHECKING:
    from wuneng.recipe import WrittenRecipe
    from wuneng.train import Results
    from wuneng.train.step_range import StepRange

__all__ = ["EXAMPLES", "SHORT_HELP", "train"]

SHORT_HELP = "Train the arms of a recipe and compare them."
EXAMPLES = """Examples:

\b
  wuneng train recipes/quickstart.yaml --jobs 2
                              two runs at the same time
  wuneng train recipes/text.yaml --set data.train=books/ \\
      --set training.steps=2k --set arms.mha.training.learning_rate=3e-4
  wuneng train recipes/text.yaml --processes 2
                              every arm in two processes together
  wuneng train recipes/text.yaml --dry-run
                              sizes, memory and time on this machine
  wuneng train recipes/fineweb-1b5.yaml --dry-run --no-measure \\
      --processes 8 --roof H100
                              and on one that is not here
  wuneng train recipes/upgrade-llama.yaml --set init_from=my-llama \\
      --set data.train=texts/
  wuneng train runs/quickstart/recipe.yaml --out again
                              repeat a finished run

A run that was stopped or killed continues where it was when the same command is given again. Given
with the same --out while it runs, also on other hosts, it joins in and trains what nobody has.
Sizes may be written 8k or 1M (powers of 1024).
"""


@options.with_output
def train(
    output: options.Output,
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A YAML file, such as those in recipes/.")
    ],
    changes: options.Changes = None,
    out: Annotated[
        Path | None,
        options.out("The run directory. [default: runs/<name of the recipe>, numbered if taken]"),
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
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            max=1024,
            metavar="N",
            help="Train N arms (and seeds) side by side, each in a process of its own; on a CPU "
            "they share its threads. [default: one for each GPU, on a CPU one]",
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes",
            min=1,
            max=1024,
            metavar="N",
            help="Train every arm in N processes of this machine together, one for each GPU or "
            "some of the CPU's cores, as the recipe's parallel: says; with --jobs, every one of "
            "those has N. On several machines: torchrun -m wuneng_cli train.",
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile",
            metavar="FIRST-LAST",
            help="Record these steps of every arm with torch's profiler: a trace for Perfetto and "
            "where the time went, by part of the model and by operator, in <arm>/profile.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Train nothing: print parameters by part, what state and middle heads add, "
            "tokens, FLOPs, memory, disk and time; with --verbose the resolved recipe too, or each "
            "run of a study.",
        ),
    ] = False,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure/--no-measure",
            help="With --dry-run: estimate the time from about a second of each arm's steps, on "
            "the device that the recipe names; without, plan for a machine that is not this one.",
        ),
    ] = True,
    roof: Annotated[
        str | None,
        typer.Option(
            "--roof",
            metavar="NAME|BENCH.json",
            help="With --dry-run: compute the least time on devices like these, from a data sheet "
            "(A100, H100, H200, ...) or from the rates that `wuneng bench` has measured.",
        ),
    ] = None,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    verify: options.Verify = True,
) -> None:
    """Train the arms of RECIPE one after another or side by side, on the same batches from the same
    seed, and compare them.

    Everything lands in a run directory: the resolved recipe, metrics.jsonl, checkpoints and the
    trained model of each arm, and results.json with the arms side by side.
    """
    from wuneng.records import prove_writable
    from wuneng_cli.processes import seen, start

    if dry_run:
        from wuneng.train.workers import Workers
        from wuneng_cli.dry_run import refuse

        written = _written(recipe, changes, device)
        _profiled(profile, written)
        elsewhere = roof is not None or not measure
        refuse(written.recipe, elsewhere=elsewhere, workers=Workers(jobs, processes or 1))
        if out is not None:
            prove_writable(out, "--out")
        if not (elsewhere or output.quiet):
            print_passing("timing some steps of each arm (--no-measure leaves that out)")
        _print_plan(
            *(written, processes, roof),
            measure=measure,
            as_json=output.as_json,
            verbose=output.verbose,
        )
        return
    if roof is not None:
        raise typer.BadParameter("expected beside --dry-run alone", param_hint="--roof")
    with seen():
        written = _written(recipe, changes, device)
        profiled = _profiled(profile, written)
        named = out is not None or resume not in ("auto", "never")
        together = start(processes, jobs, written.recipe, named=named)
        _train(
            *(written, out, resume, jobs, together, profiled),
            verify=verify,
            as_json=output.as_json,
            quiet=output.quiet,
        )


def _written(recipe: Path, changes: list[str] | None, device: str | None) -> WrittenRecipe:
    from wuneng.recipe import read_written

    overrides = list(changes or [])
    if device is not None:
        overrides.append(f"device={device}")
    written = read_written(recipe, overrides)
    from wuneng.ops.backend import check_environment

    check_environment()
    return written


def _profiled(text: str | None, written: WrittenRecipe) -> StepRange | None:
    """The steps that ``--profile`` asks for. InputError where the recipe has none such."""
    if text is None:
        return None
    from wuneng.errors import InputError
    from wuneng.train.step_range import step_range

    if not written.recipe.is_single:
        raise InputError("--profile: expected a recipe of one run, got one with sweep or study")
    return step_range(text, written.recipe.training.total_steps, "--profile")


def _print_plan(
    written: WrittenRecipe,
    processes: int | None,
    roof: str | None,
    *,
    measure: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    from wuneng.errors import InputError
    from wuneng_cli.dry_run import plan, plan_lines, plan_table

    recipe = written.recipe
    if not recipe.is_single:
        if processes is not None or roof is not None:
            raise InputError(
                "--dry-run with --processes or --roof: expected a recipe of one run, got one with "
                "sweep or study"
            )
        _print_runs(written, measure=measure, as_json=as_json, every=verbose)
        return
    planned = plan(recipe, measure=measure, processes=processes, roof=roof)
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


def _print_runs(written: WrittenRecipe, *, measure: bool, as_json: bool, every: bool) -> None:
    from wuneng_cli.study_dry_run import planned_runs, runs_lines, runs_table

    planned = planned_runs(written, measure=measure)
    if as_json:
        print_json(planned)
        return
    print_renderable(runs_table(planned, every=every))
    for line in runs_lines(planned):
        print_text(line)


def _train(
    written: WrittenRecipe,
    out: Path | None,
    resume: str,
    jobs: int | None,
    together: int,
    profiled: StepRange | None,
    *,
    verify: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    from wuneng.records.user_cache import OLD_CACHE
    from wuneng.study import StudyResults, SweepResults, run_study, run_sweep
    from wuneng.train import Workers, make_display, run
    from wuneng.train.profile_table import profile_tables, read_profiles
    from wuneng_cli.dry_run import sources_of
    from wuneng_cli.processes import is_first
    from wuneng_cli.silence import silenced

    display = make_display(quiet=quiet, to_stderr=as_json)
    if OLD_CACHE.is_dir():
        display.note(
            f"{OLD_CACHE} is of an earlier version and not used any more: `wuneng cache clear` "
            "deletes it"
        )
    settings: dict[str, Any] = {
        "display": display,
        "command_line": ["wuneng", *sys.argv[1:]],
        "sources": sources_of(written.recipe, check=verify),
        "verify": verify,
        "workers": Workers(jobs, together, silenced),
    }
    results: Results | SweepResults | StudyResults
    if written.recipe.is_single:
        results = run(written.recipe, out, resume, profile=profiled, **settings)
        following = _next(results, written.recipe.data.kind)
    else:
        train_all = run_sweep if written.recipe.study is None else run_study
        results, following = train_all(written, out, resume, **settings), []
    if not is_first():
        return
    page = _report(results.directory)
    profiles = {} if profiled is None else read_profiles(results.directory)
    if as_json:
        found = {"directory": str(results.directory), **results.record}
        print_json({**found, **({"profile": profiles} if profiles else {})})
        return
    for table in (*results.tables, *profile_tables(profiles)):
        print_renderable(table)
    print_text(results.sentence)
    shown = f"; {page.name} shows it" if page else ""
    print_line(f"\nEverything is in {results.directory}{shown}.")
    for title, command in zip(("Next:", "     "), following, strict=False):
        print_line(f"{title} {command}")


def _report(run: Path) -> Path | None:
    """The page about ``run``, made once by those who have worked on it."""
    from wuneng.records import RunDirectory

    page, results = run / "report.html", RunDirectory(run).results
    if not leaves_reports():
        return None  # and nothing is claimed for it
    with alone_in(run):
        if page.exists() and page.stat().st_mtime_ns > results.stat().st_mtime_ns:
            return page
        return leave_report(run)


def _next(results: Results, kind: str) -> list[str]:
    """Commands that work for this run as it is, without a network."""
    run = quote(str(results.directory))
    if kind == "text":
        return [f'wuneng generate {run} --prompt "..."', f"wuneng eval {run}"]
    # A model of synthetic tasks neither reads nor writes.
    has_state = any(arm["kind"] == "hybrid" for arm in results.record["arms"].values())
    return [f"wuneng eval {run}", *([f"wuneng eval {run} --state zero"] if has_state else [])]
