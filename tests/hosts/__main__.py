"""``python -m tests.hosts``: two workers on one directory, killed at random until told enough.

Rounds follow each other, each a run of six units in a directory of its own, until so many workers
were killed. What they leave must be what one undisturbed command leaves, to the bit.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import random
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from tests.hosts.rounds import UNITS, Disturbed, disturbed_round, left, write_recipe
from tests.hosts.workers import BEAT, PATIENCE, hosts


def main() -> int:
    """Run; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.hosts", description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--stops", type=int, default=2, help="in each round, beside the kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="append a section to this file")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    rounds: list[Disturbed] = []
    with tempfile.TemporaryDirectory(prefix="wuneng-hosts-") as name:
        scratch = Path(name)
        recipe = write_recipe(scratch)
        with hosts(recipe, scratch / "undisturbed") as alone:
            alone.start("a").join()
        expected = {unit: left(scratch / "undisturbed", unit) for unit in UNITS}
        while (done := sum(found.kills for found in rounds)) < options.kills:
            out = scratch / f"round-{len(rounds)}"
            few = min(options.kills - done, 12)  # one run is not long enough for all
            found = disturbed_round(recipe, out, expected, draw, few, options.stops)
            rounds.append(found)
            print(found, file=sys.stderr, flush=True)
    text = _section(options.seed, rounds)
    print(text)
    if options.log is not None:
        with options.log.open("a", encoding="utf-8") as file:
            file.write(text)
    return 1 if any(found.wrong for found in rounds) else 0


def _section(seed: int, rounds: list[Disturbed]) -> str:
    kills, wrong = sum(r.kills for r in rounds), [w for r in rounds for w in r.wrong]
    lines = [
        f"\n## {datetime.datetime.now(datetime.UTC).date()}, seed {seed}\n",
        f"{kills} workers killed, {sum(r.stops for r in rounds)} stopped for a while; {len(wrong)} "
        f"wrong. Claims beat every {BEAT:g} s and hold for {BEAT * PATIENCE:g} s. Python "
        f"{platform.python_version()}, torch {version('torch')}.\n",
        "| round | killed | stopped | units taken over | woken to find a unit lost | seconds |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for number, r in enumerate(rounds):
        cells = (number, r.kills, r.stops, r.taken_over, r.woken, f"{r.seconds:.0f}")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", *(f"- {' '.join(item.split())[:300]}" for item in wrong)]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    sys.exit(main())
