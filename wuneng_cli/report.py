"""``wuneng report``: one page about a run, an evaluation, a benchmark, or several together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wuneng_cli import options
from wuneng_cli.render import print_json, print_line, print_text

if TYPE_CHECKING:
    from wuneng.report.records import Records

__all__ = ["EXAMPLES", "SHORT_HELP", "alone_in", "leave_report", "leaves_reports", "report"]

SHORT_HELP = "Write a page about runs, evals and benchmarks."
EXAMPLES = """Examples:

\b
  wuneng report                             the latest run
  wuneng report runs/text runs/bench/text   a run and its speed on one page
  wuneng report runs/a runs/b --out compared
  wuneng report runs/text --format md       words and tables, for an appendix

The page is one file: no network, no script, light and dark. Beside it are report.json and
report-data/*.csv with every number of it.
"""


@options.with_output
def report(
    output: options.Output,
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN...",
            help="Directories of runs, evaluations or benchmarks. [default: the latest run]",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        options.out("Where the page goes. [default: the first RUN]"),
    ] = None,
    form: Annotated[
        str, typer.Option("--format", metavar="html|md", help="A page, or Markdown.")
    ] = "html",
    verify: options.Verify = True,
) -> None:
    """Write report.html about one directory or several: the answer with its interval, learning
    curves, tokens saved, differences, tasks, controls, speed, settings and environment, as far as
    the records have them.
    """
    from wuneng.device import require_one_process
    from wuneng.records import RUNS_ROOT, prove_writable
    from wuneng.report import build_report, write_curves, write_report
    from wuneng.report.records import read_family
    from wuneng.report.write import report_record

    require_one_process()
    if form not in ("html", "md"):
        raise typer.BadParameter(f"expected html or md, got {form!r}", param_hint="--format")
    places = runs or [RUNS_ROOT / "latest"]
    found = [one for place in places for one in read_family(place, check=verify)]
    directory = out or found[0].path
    prove_writable(directory, "--out")
    built = build_report(found)
    with alone_in(directory) if out is None else nullcontext():
        if out is None:
            for one in found:
                write_curves(one)
        page = write_report(built, directory, "md" if form == "md" else "html")
        if out is None:
            _draw_below(found)
    if output.as_json:
        print_json({"file": str(page), **report_record(built)})
    elif not output.quiet:
        for part in built.parts:
            of_which = f"{part.records.name}: " if len(built.parts) > 1 else ""
            for section in part.sections[:1]:
                told = section.text[0] if section.text else ""
                print_text(f"{of_which}{told}" if told else part.records.name)
        print_line(f"\nThe report is {page}.")


def alone_in(run: Path) -> AbstractContextManager[object]:
    """While no other command writes the results of ``run``, or its page."""
    from wuneng.records.claim import claimed
    from wuneng.records.claimant import Claimant

    return claimed(run, Claimant(), partial(print_line, stderr=True))


def leaves_reports() -> bool:
    """Whether commands leave a page: unless ``WUNENG_REPORT`` is 0."""
    return os.environ.get("WUNENG_REPORT") != "0"


def leave_report(directory: Path) -> Path | None:
    """The page of a command that has just written its records into ``directory``.

    None where none is left, or, with a word on stderr, where it could not be written: the records
    are what counts.
    """
    if not leaves_reports():
        return None
    from wuneng.errors import WuNengError
    from wuneng.report import build_report, write_curves, write_report
    from wuneng.report.records import read_family

    try:
        records = read_family(directory, check=False)
        for one in records:
            write_curves(one)
        page = write_report(build_report(records), directory)
    except WuNengError as error:
        print_line(f"no report was written: {error}", stderr=True)
        return None
    _draw_below(records)
    return page


def _draw_below(found: Sequence[Records]) -> None:
    """The curves of tuning runs and of a sweep's points; what cannot be drawn is said."""
    from wuneng.report import write_curves_below

    for records in found:
        for problem in write_curves_below(records):
            print_line(f"learning curves are missing: {problem}", stderr=True)
