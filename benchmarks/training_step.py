"""A training step of the CPU figures' model and of its arms, beside each other.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -m benchmarks.training_step --out FILE

``--what prefill`` times the first token instead: a prompt of 1,024 tokens into a new cache, without
gradients.

For machines that others use as well: one thread, whose processor time is measured without what
other processes take, and all arms in turn in one process, so that a busy machine is busy for all
of them. Each arm is checked against its reference first (``gates``). ``of_mha`` is the median of
each round's own ratio. The model is ``benchmarks/cpu.yaml``, its arms those of ``wuneng bench``.
Peak bytes are what a call allocates at most at once, weights and optimiser included. With
``--threads 2`` it is the clock that is read, for an idle machine.

``--before FILE`` keeps a record of an earlier commit, made by this command on the same machine,
beside the new figures: ``before`` holds its ``git_commit`` and its ``shapes``, each with ``batch``,
``tokens``, ``rounds`` and ``rows``, whose ``arm``, ``fastest_milliseconds``, ``of_mha`` and
``peak_bytes`` are what is compared.
"""

from __future__ import annotations

import argparse
import sys
import time
from operator import truediv
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.gated import gated
from wuneng.bench.architectures import choose
from wuneng.bench.machine import load_average
from wuneng.bench.memory import peak_bytes
from wuneng.bench.models import ModelStore, prefill_case, train_case
from wuneng.bench.request import BenchRequest
from wuneng.device import environment
from wuneng.records import read_json, write_json

MODEL = Path(__file__).with_name("cpu.yaml")
#: What is timed, and at which batches and lengths.
CASES = {"train": (train_case, ((1, 512), (4, 512))), "prefill": (prefill_case, ((1, 1024),))}
ARMS = ("mha", "replace", "rwkv7")


def measured(
    batch: int,
    tokens: int,
    rounds: int,
    arms: tuple[str, ...] = ARMS,
    what: str = "train",
) -> dict[str, Any]:
    """Rows of all arms at one shape."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    device, seconds = torch.device("cpu"), {}
    store = ModelStore(device, torch.float32, "fp32")
    chosen = choose(BenchRequest(model=MODEL, seq_lens=(tokens,), against=arms)).architectures
    make = CASES[what][0]
    cases = {arm.arm: make(store, arm, batch, tokens) for arm in chosen}
    gates = gated(cases.values())
    ready = {arm: case.prepare() for arm, case in cases.items()}
    peaks = {}
    for arm, case in ready.items():
        case.call(0)  # the optimiser's tensors are made
        peaks[arm] = case.held_bytes + peak_bytes(lambda call=case.call: call(1), device)
        seconds[arm] = []
    for number in range(rounds):
        for arm, case in ready.items():
            began = clock()
            case.call(number)
            seconds[arm].append(clock() - began)
    rows = [
        {
            "arm": arm,
            "milliseconds": 1e3 * median(times),
            "fastest_milliseconds": 1e3 * min(times),
            "tokens_per_second": batch * tokens / median(times),
            "of_mha": median(map(truediv, seconds["mha"], times)),
            "peak_bytes": peaks[arm],
            "peak_of_mha": peaks[arm] / peaks["mha"],
        }
        for arm, times in seconds.items()
    ]
    shape = {"what": what, "batch": batch, "tokens": tokens, "rounds": rounds}
    return {**shape, "threads": torch.get_num_threads(), "gates": gates, "rows": rows}


def before(path: Path) -> dict[str, Any]:
    """What stays of an earlier commit's record: the commit, and what was measured."""
    record = read_json(path)
    return {"git_commit": record["environment"]["git_commit"], "shapes": record["shapes"]}


def _kept(out: Path | None) -> dict[str, Any]:
    """The ``before`` of a record that is made anew."""
    record = read_json(out) if out is not None and out.exists() else {}
    return {"before": record["before"]} if "before" in record else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--what", choices=CASES, default="train")
    parser.add_argument("--before", type=Path, help="record of an earlier commit, kept beside")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    earlier = {"before": before(chosen.before)} if chosen.before else _kept(chosen.out)
    began, found = load_average(), []
    for batch, tokens in CASES[chosen.what][1]:
        found.append(measured(batch, tokens, chosen.rounds, what=chosen.what))
        print(f"{chosen.what}, batch {batch}, {tokens} tokens, {chosen.threads} threads")
        for row in found[-1]["rows"]:
            print(
                f"  {row['arm']:8s} {row['milliseconds']:8.1f} ms, {row['of_mha']:.3f} of mha's "
                f"speed, fastest {row['fastest_milliseconds']:.1f} ms, peak "
                f"{row['peak_bytes'] / 2**20:.1f} MiB, {row['peak_of_mha']:.2f} of mha's"
            )
    if chosen.out is not None:
        command = environment(["python", "-m", "benchmarks.training_step", *sys.argv[1:]])
        record = {"environment": command, "load_average": began, "shapes": found, **earlier}
        write_json(chosen.out, record)


if __name__ == "__main__":
    main()
