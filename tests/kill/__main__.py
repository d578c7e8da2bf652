"""``python -m tests.kill``: disturb every command at every file operation, for as long as told.

Cases are drawn without repetition, in an order that the seed decides; the log says how far it came,
also when it is interrupted, and ``--skip`` goes on from there.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.kill.harness import MODES, Scenario, Server
from tests.kill.scenarios import scenarios

#: A scenario, a disturbance, the operation at which it comes, and that of a second one or 0.
Case = tuple[Scenario, str, int, int]
TWICE = "killed twice"
NAMES = [*MODES, TWICE]


def main() -> int:
    """Run; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.kill", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--how", choices=NAMES, help="this disturbance alone")
    parser.add_argument("--skip", type=int, default=0, metavar="N", help="go on after N cases")
    parser.add_argument("--log", type=Path, help="append a section to this file")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="wuneng-kill-") as name:
        scratch = Path(name)
        server = Server(scratch)
        try:
            chosen = scenarios()
            for scenario in chosen:
                scenario.measure(server, scratch)
            hows = NAMES if options.how is None else [options.how]
            cases = _cases(chosen, hows, draw)[options.skip :]
            report = _disturb(server, scratch, cases, 60 * options.minutes)
        finally:
            server.close()
    text = _section(options.seed, chosen, *report)
    print(text)
    if options.log is not None:
        with options.log.open("a", encoding="utf-8") as file:
            file.write(text)
    return 1 if report[1] else 0


def _cases(chosen: list[Scenario], hows: list[str], draw: random.Random) -> list[Case]:
    """In the order in which they are tried."""
    cases = [
        (scenario, how, at, draw.randint(1, scenario.operations) if how == TWICE else 0)
        for scenario in chosen
        for how in hows
        for at in range(1, scenario.operations + 1)
    ]
    draw.shuffle(cases)
    return cases


def _disturb(
    server: Server, scratch: Path, cases: list[Case], seconds: float
) -> tuple[Counter[tuple[str, str]], list[str], int]:
    """Cases by scenario and disturbance, what was wrong, and how many cases there were."""
    done: Counter[tuple[str, str]] = Counter()
    wrong: list[str] = []
    end = time.monotonic() + seconds
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was done is said all the same
    for scenario, how, at, then in cases:
        if time.monotonic() > end:
            break
        try:
            found = scenario.disturb(server, scratch, MODES.get(how, MODES["killed"]), at, then)
        except KeyboardInterrupt:
            break
        done[scenario.name, how] += 1
        if found is not None:
            wrong.append(f"{how}: {found}")
            print(wrong[-1], file=sys.stderr, flush=True)
    return done, wrong, len(cases)


def _section(
    seed: int,
    chosen: list[Scenario],
    done: Counter[tuple[str, str]],
    wrong: list[str],
    possible: int,
) -> str:
    from importlib.metadata import version

    import torch

    names = NAMES
    versions = f"wuneng {version('wuneng')}, torch {torch.__version__}, " + ", ".join(
        f"{name} {version(name)}" for name in ("transformers", "safetensors")
    )
    lines = [
        f"\n## {datetime.datetime.now(datetime.UTC).date()}, seed {seed}\n",
        f"{sum(done.values()):,} of {possible:,} cases, {len(wrong)} wrong. "
        f"Python {platform.python_version()}, {versions}.\n",
        "| command | file operations | " + " | ".join(names) + " |",
        "|---|---:|" + "---:|" * len(names),
    ]
    for scenario in chosen:
        counts = " | ".join(str(done[scenario.name, name]) for name in names)
        lines.append(f"| {scenario.name} | {scenario.operations} | {counts} |")
    lines += ["", *(f"- {' '.join(item.split())[:300]}" for item in wrong)]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    sys.exit(main())
