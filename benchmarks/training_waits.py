"""What training waits for beside its own arithmetic: data, and checkpoints written aside; and
whether tokenising uses the cores that are there. All three as ratios, for machines with other work.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.training_waits --data FILE --out \\
        benchmarks/training_waits.json

    tokenising   ``data.train`` = FILE with a tokenizer of 4096 byte pairs, into an empty cache, by
                 two threads: processor seconds a second of wall time, beside those of two processes
                 that only count, in turn with it. 1 is all that two cores gave at that time.
    data wait    ``recipes/text.yaml`` on FILE, one arm: the share of its steps' time that was
                 waited for batches, as the run itself records it.
    saving       a model of 100 M parameters with AdamW, ``async_checkpoints``: seconds in which
                 training stood still, over those from the beginning of the save to the directory's
                 appearance, while steps go on.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from wuneng.bench.machine import load_average
from wuneng.data.batch import Batch
from wuneng.data.documents import read_documents
from wuneng.data.encoding import Encoder
from wuneng.data.sources import FileSource
from wuneng.data.token_cache import tokenized
from wuneng.data.tokenizer import train_byte_pair_tokenizer
from wuneng.default_wiring import MIDDLE_WIRING
from wuneng.device import environment
from wuneng.model import WuNengConfig, WuNengForCausalLM
from wuneng.model.counting import total_parameters
from wuneng.recipe import Training, load_recipe
from wuneng.records import read_json, write_json
from wuneng.train.display import QuietDisplay
from wuneng.train.optimizer import build_optimizer
from wuneng.train.run import run
from wuneng.train.saving import Saver
from wuneng.train.step import Numerics, take_step
from wuneng.train.trainer_state import TrainerState

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "text.yaml"
CORES = 2
#: Near 100 M parameters.
LARGE = {
    "vocab_size": 8192,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_state_heads": 2,
    **MIDDLE_WIRING,
}


def _count(seconds: float) -> float:
    """Processor seconds that this process gets in ``seconds`` of wall time."""
    end, began = time.perf_counter() + seconds, time.process_time()
    while time.perf_counter() < end:
        pass
    return time.process_time() - began


def tokenising(data: Path, rounds: int) -> dict[str, Any]:
    """Cores in use while FILE is tokenised, beside those that the machine gives."""
    documents = list(read_documents(data, "text"))
    encoder = Encoder(train_byte_pair_tokenizer(documents[: len(documents) // 8], 4096, "4096"))
    source = FileSource([str(data)], "data.train", "text", None)
    used, given = [], []
    with multiprocessing.get_context("spawn").Pool(CORES) as counting:
        counting.map(_count, [0.1] * CORES)
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as place:
                began, work = time.perf_counter(), time.process_time()
                tokenized(source, encoder, Path(place), workers=CORES)
                wall = time.perf_counter() - began
                used.append((time.process_time() - work) / wall)
            given.append(sum(counting.map(_count, [wall / 2] * CORES)) / (wall / 2))
    return {
        "cores_used": used,
        "cores_given": given,
        "ratio": median(mine / all_ for mine, all_ in zip(used, given, strict=True)),
    }


def data_wait(data: Path, steps: int) -> dict[str, Any]:
    """The recipe's own record of what its steps waited for."""
    with tempfile.TemporaryDirectory() as place:
        changes = [
            f"data.train={data}",
            f"data.cache_dir={place}/cache",
            f"training.steps={steps}",
            "training.warmup_steps=1",
            "training.validate_every=0",
            "training.checkpoint_every=0",
            "evaluation.max_batches=1",
            "arms=[wuneng]",
            "device=cpu",
        ]
        done = run(
            load_recipe(RECIPE, changes), Path(place) / "run", display=QuietDisplay(io.StringIO())
        )
        result = read_json(done.directory / "wuneng" / "result.json")
    return {"steps": steps, "share": result["data_wait"]}


def saving(saves: int, tokens: int) -> dict[str, Any]:
    """How long training stands still for a save, and how long the save takes."""
    config = WuNengConfig(**LARGE)
    model = WuNengForCausalLM(config).train()
    training = Training(steps=1, sequence_length=tokens, batch_size=1, async_checkpoints=True)
    optimizer = build_optimizer(model, training)
    numerics, state = Numerics(torch.device("cpu")), TrainerState("large", 0)
    blocked, took = [], []
    with tempfile.TemporaryDirectory() as place:
        saver = Saver(Path(place), model, optimizer, training, warn=print)

        def step() -> None:
            state.step += 1
            ids = torch.randint(config.vocab_size, (1, tokens + 1))
            batch = Batch(ids[:, :-1], ids[:, 1:], None, "text", tokens)
            take_step(model, optimizer, batch, training, numerics, step=state.step, arm="large")

        step()  # the optimiser's moments are there
        for _ in range(saves):
            saver.finish()
            before, began = saver.waited, time.perf_counter()
            written = _when_there(Path(place) / f"step-{state.step}")
            saver.save(state)
            while written.is_alive():
                step()
            took.append(written.seconds - began)
            blocked.append(saver.waited - before)
        saver.finish()
    return {
        "parameters": total_parameters(config),
        "seconds_blocked": blocked,
        "seconds_of_the_save": took,
        "share": median(mine / all_ for mine, all_ in zip(blocked, took, strict=True)),
    }


class _Watch(threading.Thread):
    """Notes when ``path`` is there."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path, self.seconds = path, 0.0

    def run(self) -> None:
        while not self.path.exists():
            time.sleep(0.01)
        self.seconds = time.perf_counter()


def _when_there(path: Path) -> _Watch:
    watch = _Watch(path)
    watch.start()
    return watch


def main() -> None:
    """Measure the three and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    before = load_average()
    found = {
        "tokenising": tokenising(options.data, options.rounds),
        "saving": saving(options.rounds, 256),
        "data_wait": data_wait(options.data, options.steps),
    }
    record = {
        "schema": 1,
        "environment": environment(["python", "-m", "benchmarks.training_waits"]),
        "cores": os.cpu_count(),
        "load_average": {"start": before, "end": load_average()},
        "data": options.data.name,
        **found,
    }
    write_json(options.out, record)
    print(f"tokenising: {found['tokenising']['ratio']:.2f} of what two cores gave")
    print(f"data wait: {found['data_wait']['share']:.2%}")
    print(f"saving: blocked for {found['saving']['share']:.2%} of its duration")


if __name__ == "__main__":
    main()
