"""``wuneng bench``: speed, memory and scale beside plain attention and pure RWKV-7."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wuneng_cli import options
from wuneng_cli.render import (
    print_error,
    print_json,
    print_line,
    print_renderable,
    print_text,
)
from wuneng_cli.report import leave_report

if TYPE_CHECKING:
    from wuneng.bench import BenchRequest

__all__ = ["EXAMPLES", "SHORT_HELP", "bench"]

SHORT_HELP = "Measure speed, memory and how they grow with length."
EXAMPLES = """Examples:

\b
  wuneng bench --seq-len 8k   a small model at 1k, 2k, 4k and 8k tokens
  wuneng bench --model recipes/text.yaml --what train --seq-len 512,2k
  wuneng bench --preset 400m --what decode --batch 1,16,64 \\
                              --seq-len 1k,8k,32k --device cuda
  wuneng bench --what parts --seq-len 512
                              where a training step spends its time
  wuneng bench --compare runs/bench/small --fail-over 10%

What: ops (WKV-7's backends, attention, fusion), prefill, decode, train, parts. Against: mha and
rwkv7 (as many parameters), replace, mha-shift, llama (transformers' own), llama.cpp and
llama.cpp-rwkv7 (a Llama and an RWKV-7 run by llama-cpp-python, on a CPU), fla
(flash-linear-attention's operators and RWKV-7 model), mamba (mamba-ssm's operators), wind
(wind_rwkv's WKV-7 kernel), none. On a GPU the last three's operators are always tried. Presets:
130m, 400m, 1.5b, 7b. One length alone is measured at its eighth, quarter and half too,
from 128 on. With --compare, options left out are the earlier record's.
"""


@options.with_output
def bench(
    output: options.Output,
    seq_len: Annotated[
        str | None,
        typer.Option(
            "--seq-len", metavar="1k,8k", help="Lengths in tokens (k = 1024). [default: 4k]"
        ),
    ] = None,
    what: Annotated[
        str | None,
        typer.Option(
            "--what",
            metavar="A,B",
            help="ops, prefill, decode, train, parts. [default: ops,prefill,decode,train]",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="DIR|RECIPE",
            help="A recipe, a model or a run. [default: a small one]",
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", metavar="NAME", help="130m, 400m, 1.5b or 7b.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="A,B",
            help="What stands beside it. [default: mha,rwkv7, where the model allows]",
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option("--batch", metavar="1,8", help="Sequences at once. [default: 1]"),
    ] = None,
    heads: Annotated[
        int | None,
        typer.Option("--heads", metavar="N", help="Heads of the operators. [default: the model's]"),
    ] = None,
    training: Annotated[
        str | None,
        typer.Option(
            "--training",
            metavar="A,B",
            help="How training steps run: compile, cuda_graph. [default: the recipe's way]",
        ),
    ] = None,
    device: options.Device = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype", metavar="NAME", help="auto (bf16 on a GPU, else fp32), fp32, bf16 or fp16."
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", help="CPU threads. [default: torch's]")
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            "--seconds",
            metavar="S",
            min=0.1,
            help="Time to spend on repetitions, each case at least three; what the checks against "
            "the reference and the warm-up add is told before it begins. [default: 40]",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        options.out(
            "Where bench.json, bench.csv and the pictures go. [default: runs/bench/<model>]"
        ),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option("--compare", metavar="OLD.json", help="Show changes since this record."),
    ] = None,
    fail_over: Annotated[
        str | None,
        typer.Option(
            "--fail-over",
            metavar="10%",
            help="With --compare: exit 1 when a figure is worse by more than this, beyond noise.",
        ),
    ] = None,
    trust_remote_code: options.TrustRemoteCode = False,
    verify: options.Verify = True,
) -> None:
    """Measure WuNeng beside the parameter-matched plain-attention baseline and pure RWKV-7 heads:
    operators, prefill, decoding and training steps over several lengths. What is timed is first
    checked against the reference; nothing that differs from it gets a speed.
    """
    from wuneng.device import require_one_process

    require_one_process()
    from wuneng.bench.request import RECIPES
    from wuneng.records import find_model

    if model is not None and Path(model).suffix not in RECIPES:
        find_model(model)  # before what takes seconds to import
    from wuneng.bench.record import failures, nothing_measured, read_record
    from wuneng.bench.request import BenchRequest, make_request, parse_percent
    from wuneng.bench.stopping import was_stopped
    from wuneng.errors import InputError
    from wuneng.ops.backend import check_environment

    check_environment()
    limit = None if fail_over is None else parse_percent("--fail-over", fail_over)
    if limit is not None and compare is None:
        raise InputError("--fail-over needs --compare OLD.json to compare with")
    old = None if compare is None else read_record(compare, check=verify)
    request = make_request(
        seq_len=seq_len,
        what=what,
        model=model,
        preset=preset,
        against=against,
        batch=batch,
        device=device,
        dtype=dtype,
        threads=threads,
        heads=heads,
        training=training,
        seconds=seconds,
        base=None if old is None else BenchRequest.from_json(old["request"]),
    )
    record, directory = _measure(request, out, verify=verify, quiet=output.quiet)
    passed = old is None or _compare(
        old, record, limit, as_json=output.as_json, verbose=output.verbose
    )
    if old is None or not output.as_json:
        _show(record, directory, as_json=output.as_json, verbose=output.verbose)
    failed = [*failures(record), *filter(None, [nothing_measured(record)])]
    for line in failed:
        print_error(line)
    if was_stopped(record):
        raise KeyboardInterrupt
    if failed or not passed:
        raise typer.Exit(1)


def _measure(
    request: BenchRequest, out: Path | None, *, verify: bool, quiet: bool
) -> tuple[dict[str, Any], Path]:
    from wuneng.bench.pictures import draw
    from wuneng.bench.record import write_record
    from wuneng.bench.request import RECIPES
    from wuneng.bench.session import run_benchmark
    from wuneng.records import RUNS_ROOT, RunDirectory, find_model, prove_writable
    from wuneng.records import verify as verify_files

    def notify(message: str) -> None:
        if not quiet:
            print_line(message, stderr=True)

    if verify and request.model is not None and Path(request.model).suffix not in RECIPES:
        verify_files(find_model(request.model))
    line = ["wuneng", *sys.argv[1:]]
    # Found out now, not after minutes of measuring.
    prove_writable(out or RUNS_ROOT / "bench", "--out")
    record = run_benchmark(request, command_line=line, notify=notify)
    directory = out or RunDirectory.create(record["model"], RUNS_ROOT / "bench").path
    write_record(directory, record)
    notify("drawing the pictures and the report")
    draw(record, directory)
    leave_report(directory)
    return record, directory


def _show(record: dict[str, Any], directory: Path, *, as_json: bool, verbose: bool) -> None:
    from wuneng.bench.answer import report

    if as_json:
        print_json({"directory": str(directory), **record})
        return
    for piece in report(record, verbose=verbose):
        if isinstance(piece, str):
            print_text(piece)
        else:
            print_renderable(piece)
    more = "" if verbose else " --verbose prints all of it."
    print_line(f"\nEverything is in {directory}.{more}")


def _compare(
    old: dict[str, Any],
    new: dict[str, Any],
    limit: float | None,
    *,
    as_json: bool,
    verbose: bool,
) -> bool:
    """Show the comparison; False when it fails the limit."""
    from wuneng.bench.compare import compare_records, sentence
    from wuneng.bench.tables import comparison_table

    comparison = compare_records(old, new)
    passed = limit is None or not comparison.worse(limit)
    if as_json:
        print_json({**new, "comparison": {**comparison.to_json(), "passed": passed}})
        return passed
    print_text(sentence(comparison.changes, limit))
    table = comparison_table(comparison, every=verbose)
    if table.rows:
        print_renderable(table)
    for warning in comparison.warnings:
        print_line(f"warning: {warning}", stderr=True)
    return passed
