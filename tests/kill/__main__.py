"""``python -m tests.kill``: disturb every command at every file operation, for as long as told.

Cases are drawn without repetition, in an order that the seed decides; the log says how far it came.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.kill.harness import MODES, Scenario, Server
from tests.kill.scenarios import scenarios


def main() -> int:
    """Run; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.kill", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
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
            report = _disturb(server, scratch, chosen, draw, 60 * options.minutes)
        finally:
            server.close()
    text = _section(options.seed, chosen, *report)
    print(text)
    if options.log is not None:
        with options.log.open("a", encoding="utf-8") as file:
            file.write(text)
    return 1 if report[1] else 0


def _disturb(
    server: Server, scratch: Path, chosen: list[Scenario], draw: random.Random, seconds: float
) -> tuple[Counter[tuple[str, str]], list[str], int]:
    """Cases by scenario and disturbance, what was wrong, and how many cases there are."""
    cases = [
        (scenario, how, at)
        for scenario in chosen
        for how in (*MODES, "killed twice")
        for at in range(1, scenario.operations + 1)
    ]
    draw.shuffle(cases)
    done: Counter[tuple[str, str]] = Counter()
    wrong: list[str] = []
    end = time.monotonic() + seconds
    for scenario, how, at in cases:
        if time.monotonic() > end:
            break
        then = draw.randint(1, scenario.operations) if how == "killed twice" else 0
        found = scenario.disturb(server, scratch, MODES.get(how, MODES["killed"]), at, then)
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

    names = [*MODES, "killed twice"]
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
