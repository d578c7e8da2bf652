"""``wuneng report``: one page about a run, an evaluation, a benchmark, or several together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wuneng_cli import options
from wuneng_cli.render import print_json, print_line

__all__ = ["leave_report", "register", "report"]

_EXAMPLES = """Examples:

\b
  wuneng report                                    the latest run
  wuneng report runs/text runs/bench/text          a run and its speed on one page
  wuneng report runs/a runs/b --out compared
  wuneng report runs/text --format md              words and tables, for an appendix

The page is one file: no network, no script, light and dark. Beside it are report.json and
report-data/*.csv with every number of it.
"""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command(
        "report", short_help="Write a page about runs, evals and benchmarks.", epilog=_EXAMPLES
    )(report)


def report(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN...",
            help="Directories of runs, evaluations or benchmarks. [default: the latest run]",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where the page goes. [default: the first RUN]"),
    ] = None,
    form: Annotated[
        str, typer.Option("--format", metavar="html|md", help="A page, or Markdown.")
    ] = "html",
    verify: options.Verify = True,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Write report.html about one directory or several: the answer with its interval, learning
    curves, tokens saved, differences, tasks, controls, speed, settings and environment, as far as
    the records have them.
    """
    from wuneng.records import RUNS_ROOT, prove_writable, runs_below
    from wuneng.report import build_report, write_report
    from wuneng.report.records import read_records
    from wuneng.report.write import report_record

    if form not in ("html", "md"):
        raise typer.BadParameter(f"expected html or md, got {form!r}", param_hint="--format")
    given = [_existing(place, RUNS_ROOT) for place in runs or [RUNS_ROOT / "latest"]]
    places = [below for place in given for below in runs_below(place)]
    found = [read_records(place, check=verify) for place in places]
    directory = out or (found[0].path if given[0] == places[0] else given[0])
    prove_writable(directory, "--out")
    built = build_report(found)
    page = write_report(built, directory, "md" if form == "md" else "html")
    if as_json:
        print_json({"file": str(page), **report_record(built)})
    elif not quiet:
        for part in built.parts:
            for section in part.sections[:1]:
                print_line(section.text[0] if section.text else part.records.name)
        print_line(f"\nThe report is {page}.")


def _existing(place: Path, runs_root: Path) -> Path:
    """As it is, or its name under ``runs_root``; what is not there is told by who reads it."""
    return place if place.exists() or not (runs_root / place).exists() else runs_root / place


def leave_report(directory: Path) -> Path | None:
    """The page of a command that has just written its records into ``directory``; None, with a word
    on stderr, where it could not be written: the records are what counts."""
    from wuneng.errors import WuNengError
    from wuneng.records import runs_below
    from wuneng.report import build_report, write_curves, write_report
    from wuneng.report.records import read_records

    try:
        found = [read_records(place, check=False) for place in runs_below(directory)]
        for records in found:
            write_curves(records)
        return write_report(build_report(found), directory)
    except WuNengError as error:
        print_line(f"no report was written: {error}", stderr=True)
        return None
