"""How long commands take before they do anything: fresh processes, in turn, medians.

python -m benchmarks.startup --out benchmarks/startup.json
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from wuneng.bench.machine import load_average
from wuneng.bench.timing import WallClock, interleave
from wuneng.device import environment
from wuneng.records import write_json

COMMANDS = {
    "wuneng --help": ["--help"],
    "wuneng bench --help": ["bench", "--help"],
    "wuneng train recipes/quickstart.yaml --dry-run --no-measure": [
        "train",
        "recipes/quickstart.yaml",
        "--dry-run",
        "--no-measure",
    ],
}


def main() -> None:
    """Time every command and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()

    def command(arguments: list[str]) -> Any:
        line = [sys.executable, "-m", "wuneng_cli.main", *arguments]
        return lambda _: subprocess.run(line, check=True, capture_output=True)

    calls = {name: command(arguments) for name, arguments in COMMANDS.items()}
    for call in calls.values():
        call(0)  # byte code and the disk's cache
    before = load_average()
    timings = interleave(calls, dict.fromkeys(calls, 1.0), WallClock(), seconds=30.0)
    record = {
        "schema": 1,
        "environment": environment(["python", "-m", "benchmarks.startup"]),
        "load_average": {"start": before, "end": load_average()},
        "commands": {
            name: {
                "median_seconds": timing.median,
                "spread_seconds": timing.spread,
                "best_seconds": min(timing.samples),
                "samples": len(timing.samples),
            }
            for name, timing in timings.items()
        },
    }
    write_json(options.out, record)
    for name, figures in record["commands"].items():
        print(f"{figures['median_seconds']:.2f} s (best {figures['best_seconds']:.2f})  {name}")


if __name__ == "__main__":
    main()
