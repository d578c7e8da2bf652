"""``python -m tests.fuzz --cases 100000 --seed 1``: mutants by the thousand, and a log of them."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import platform
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

from tests.fuzz.kinds import KINDS, make_originals
from tests.fuzz.supervisor import Verdict, random_of, run_cases, tried

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "pydantic", "pyyaml", "pyarrow")


def counts(cases: int, kinds: list[str]) -> dict[str, int]:
    """How many cases each kind gets: its share, and at least one."""
    total = sum(KINDS[kind][1] for kind in kinds)
    return {kind: max(1, round(cases * KINDS[kind][1] / total)) for kind in kinds}


def summary(verdicts: list[Verdict], seed: int, seconds: float) -> str:
    """The log: what was run with what, how many of each outcome, and the slowest of each kind."""
    by_kind: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        by_kind[verdict.kind].append(verdict)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    found = [verdict for verdict in verdicts if not verdict.fine]
    lines = [
        f"{datetime.date.today()}, seed {seed}: {len(verdicts):,} cases in {seconds / 60:.1f} "
        f"minutes, {len(found)} findings",
        "",
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {versions}",
        "",
        "| kind | cases | accepted | refused (2) | failed (1) | findings | mean, ms | slowest, s "
        "| growth, MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for kind, some in by_kind.items():
        outcomes = Counter(verdict.outcome for verdict in some)
        fine = [f"{outcomes[name]:,}" for name in ("accepted", "refused", "failed")]
        times = [verdict.seconds for verdict in some]
        mean = 1000 * sum(times) / len(times)
        most = max(verdict.growth for verdict in some) >> 20
        bad = sum(not verdict.fine for verdict in some)
        lines.append(
            f"| {kind} | {len(some):,} | {' | '.join(fine)} | {bad} | {mean:.1f} "
            f"| {max(times):.1f} | {most:,} |"
        )
    lines += ["", *(f"{v.kind} {v.number}: {v.outcome}: {v.detail[-300:]}" for v in found[:50])]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Run cases; exit code 1 when there is a finding."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=2000, help="of all kinds together")
    parser.add_argument("--minutes", type=float, help="stop after so long, with fewer cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="only this kind")
    parser.add_argument("--case", type=int, help="one case of --kind, in this process")
    parser.add_argument("--keep", type=Path, help="directory for the mutants that are found")
    parser.add_argument("--log", type=Path, help="file that the summary is added to")
    given = parser.parse_args()
    kinds = given.kind or list(KINDS)
    work = given.keep or Path(tempfile.mkdtemp(prefix="wuneng-fuzz-"))
    with tempfile.TemporaryDirectory(prefix="wuneng-fuzz-") as place:
        originals = make_originals(Path(place))
        made = {kind: KINDS[kind][0](originals) for kind in kinds}
        if given.case is not None:
            directory = work / "one"
            directory.mkdir(parents=True)
            os.chdir(directory)  # as in a worker: what a case writes by a relative name stays here
            for name, kind in made.items():
                print(
                    directory, *tried(kind.case(random_of(given.seed, name, given.case), directory))
                )
            return 0
        start, verdicts = time.monotonic(), []
        asked = counts(given.cases, kinds)
        for verdict in run_cases([(made[k], asked[k]) for k in kinds], given.seed, work):
            verdicts.append(verdict)
            if not verdict.fine:
                print(
                    f"{verdict.kind} {verdict.number}: {verdict.outcome}\n{verdict.detail}",
                    flush=True,
                )
            if given.minutes and time.monotonic() - start > 60 * given.minutes:
                break
            if len(verdicts) % 1000 == 0:
                print(f"{len(verdicts):,} cases, {time.monotonic() - start:.0f} s", flush=True)
        text = summary(verdicts, given.seed, time.monotonic() - start)
    print(text)
    if given.log is not None:
        with given.log.open("a", encoding="utf-8") as file:
            file.write(f"\n## {text}")
    return int(any(not verdict.fine for verdict in verdicts))


if __name__ == "__main__":
    raise SystemExit(main())
