"""``python -m wuneng.bench``: the benchmark where the ``wuneng`` command's packages are missing.

    python -m wuneng.bench ops --batch 8 --seq-len 4k --heads 32 --out benchmarks/h100
    python -m wuneng.bench schema > docs/bench-schema.json

The same measurements and files as ``wuneng bench``, which has more options.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from wuneng.bench.request import WHATS, make_request
from wuneng.bench.schema import SCHEMA
from wuneng.bench.stopping import was_stopped
from wuneng.errors import WuNengError
from wuneng.foreign import print_line


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.what == "schema":
        print_line(json.dumps(SCHEMA, indent=2))
        return 0
    try:
        return _measure(options)
    except WuNengError as error:
        print_line(f"error: {error}", stderr=True)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m wuneng.bench", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "what", nargs="?", default="ops", help=f"{', '.join(WHATS)}, several with commas, or schema"
    )
    shown = ("--seq-len", "--preset", "--against", "--batch", "--training", "--device", "--dtype")
    for name in shown:
        parser.add_argument(name)
    for name in ("--threads", "--heads"):
        parser.add_argument(name, type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--out", type=Path, help="write bench.json, bench.csv and pictures here")
    parser.add_argument("--verbose", action="store_true", help="print every table too")
    return parser


def _measure(options: argparse.Namespace) -> int:
    from wuneng.bench.answer import report
    from wuneng.bench.pictures import draw
    from wuneng.bench.record import failures, nothing_measured, write_record
    from wuneng.bench.session import run_benchmark
    from wuneng.device import require_one_process
    from wuneng.tables import Table, console

    require_one_process()
    given = vars(options).copy()
    out, verbose = given.pop("out"), given.pop("verbose")
    request = make_request(**given)

    def notify(message: str) -> None:
        print_line(message, stderr=True)

    command = ["python", "-m", "wuneng.bench", *sys.argv[1:]]
    record = run_benchmark(request, command_line=command, notify=notify)
    for piece in report(record, verbose=verbose):
        if isinstance(piece, Table):
            console().print(piece)
        else:
            print_line(piece, file=sys.stdout)
    if out is not None:
        write_record(out, record)
        draw(record, out)
        print_line(f"Written to {out}")
    failed = [*failures(record), *filter(None, [nothing_measured(record)])]
    for line in failed:
        print_line(f"error: {line}", stderr=True)
    if was_stopped(record):
        return 130
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
