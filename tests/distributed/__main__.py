"""Every built-in arm in every way of sharing it, fifty steps each; what was found goes into a log.

    python -m tests.distributed --log tests/distributed/log.md

The suite has each arm in one way, in turn (``test_exactness.py``): all of them take about ten
minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import platform
import time
from datetime import date
from itertools import product
from pathlib import Path

import torch

from tests.distributed.pool import pool
from tests.distributed.test_exactness import EVERY_WAY, check_fifty_steps
from wuneng.distributed.degrees import Degrees
from wuneng.recipe import BUILT_IN_ARMS


def main() -> None:
    """Check the product, print each result, and append them to the log."""
    parser = argparse.ArgumentParser(prog="python -m tests.distributed")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--log", type=Path)
    given = parser.parse_args()
    rows, start = [], time.monotonic()
    with pool(4) as processes:
        for arm, degrees in product(BUILT_IN_ARMS, EVERY_WAY):
            try:
                check_fifty_steps(processes, arm, degrees, given.steps)
                found = "as one process"
            except Exception as error:
                found = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            rows.append((arm, _name(degrees), found))
            print(*rows[-1], sep="  ", flush=True)
    wrong = sum(found != "as one process" for *_, found in rows)
    if given.log is not None:
        with given.log.open("a", encoding="utf-8") as log:
            log.write(_section(rows, given.steps, wrong, time.monotonic() - start))
    raise SystemExit(1 if wrong else 0)


def _name(degrees: Degrees) -> str:
    parts = [(name, getattr(degrees, name)) for name in ("replicate", "shard", "context")]
    return ", ".join(f"{name} {number}" for name, number in parts if number > 1)


def _section(rows: list[tuple[str, str, str]], steps: int, wrong: int, seconds: float) -> str:
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    head = (
        f"\n## {date.today()}\n\n{len(rows)} cases of {steps} steps, {wrong} of them wrong, in "
        f"{seconds / 60:.0f} minutes. {versions}.\n\n| arm | shared as | losses |\n|---|---|---|\n"
    )
    return head + "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    main()
