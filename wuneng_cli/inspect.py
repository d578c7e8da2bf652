"""``wuneng inspect``: what a model's heads do over a text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from wuneng_cli import options
from wuneng_cli.render import (
    print_fact,
    print_json,
    print_line,
    print_renderable,
    print_text,
)

__all__ = ["EXAMPLES", "SHORT_HELP", "inspect"]

SHORT_HELP = "Show what a model's heads do."
EXAMPLES = """Examples:

\b
  wuneng inspect --text chapter.txt   the latest run's arm with state heads
  wuneng inspect runs/quickstart --task parity
                                      over a held-out row: see the state flip
  wuneng inspect runs/text --arm mha --text chapter.txt --format csv
  wuneng inspect path/to/model --text chapter.txt --seq-len 1k --out look

Per layer and head: decay half-life in tokens, in-context learning rate, norm and effective rank of
the state, how often it flips, how much each middle head listens to the state, and the entropy of
attention. `help(wuneng.inspect.quantities)` has the definitions.

The text is read as one stream. A model without a tokenizer reads a file of token ids. --out writes
the record (JSON, CSV), the tables as markdown, and pictures.
"""

_FORMATS = ("table", "json", "md", "csv")


@options.with_output
def inspect(
    output: options.Output,
    model: options.Model = None,
    text: Annotated[
        Path | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help="UTF-8 text, or token ids. [default: held-out data of MODEL's run]",
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", metavar="NAME", help="Of a run with synthetic tasks: which one."),
    ] = None,
    arm: options.Arm = None,
    seq_len: Annotated[
        int,
        options.tokens("--seq-len", "The first N tokens of the text.", least=2),
    ] = 512,
    form: Annotated[
        str,
        typer.Option("--format", metavar="NAME", help="table, json, md or csv, on stdout."),
    ] = "table",
    out: Annotated[
        Path | None,
        options.out("Write record, tables and pictures here."),
    ] = None,
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    verify: options.Verify = True,
) -> None:
    """Show, per layer and head, what a model's heads do over one text: how long the state lasts,
    what becomes of it, and who listens to it.
    """
    from wuneng.device import require_one_process
    from wuneng.records import find_model, prove_writable

    require_one_process()
    form = _format(form, output.as_json)
    place = find_model(model, arm=arm)
    if out is not None:
        prove_writable(out, "--out")
    from wuneng.device import environment, pick_device
    from wuneng.evaluate.loading import load_model
    from wuneng.inspect.session import inspect_model
    from wuneng.inspect.subject import subject_of
    from wuneng.ops.backend import check_environment

    check_environment()
    loaded = load_model(place, device=pick_device(device or "auto"), dtype=dtype, check=verify)
    subject = subject_of(loaded, text, task, seq_len)
    if not output.quiet:
        where = f"{len(subject.tokens):,} tokens of {subject.source}"
        print_line(f"{loaded.label} over {where}, {loaded.model.device}", stderr=True)
    record = inspect_model(loaded, subject)
    record["environment"] = environment(["wuneng", *sys.argv[1:]])
    if out is not None:
        _write(record, out)
    _print(record, form)
    if out is not None and form == "table":
        print_line(f"\nEverything is in {out}.")


def _format(form: str, as_json: bool) -> str:
    from wuneng.errors import nearest

    if form not in _FORMATS:
        raise typer.BadParameter(
            f"expected {', '.join(_FORMATS)}, got {form!r}.{nearest(form, _FORMATS)}",
            param_hint="--format",
        )
    if as_json and form not in ("table", "json"):
        raise typer.BadParameter(f"--json asks for JSON, got {form!r}", param_hint="--format")
    return "json" if as_json else form


def _print(record: dict[str, Any], form: str) -> None:
    from wuneng.inspect.report import csv_text, markdown, missing_lines, tables
    from wuneng.inspect.strips import strip_lines
    from wuneng.tables import console

    if form == "json":
        print_json(record)
        return
    if form != "table":
        print_line((csv_text if form == "csv" else markdown)(record).rstrip("\n"))
        return
    for table in tables(record):
        print_renderable(table)
    for line in strip_lines(record, console().width):
        print_fact(line)
    for line in missing_lines(record):
        print_text(line)


def _write(record: dict[str, Any], out: Path) -> None:
    from wuneng.inspect.pictures import draw
    from wuneng.inspect.report import csv_text, markdown
    from wuneng.records import write_json, write_text_atomic

    write_json(out / "inspect.json", record)
    for suffix, text in (("csv", csv_text), ("md", markdown)):
        write_text_atomic(out / f"inspect.{suffix}", text(record))
    draw(record, out)
