r"""What `wuneng eval` costs beyond the model's own forward calls, on HellaSwag or other tasks.

    OMP_NUM_THREADS=1 python -m benchmarks.eval_overhead --data-dir DIR [--tokenizer DIR] [--out F]
    OMP_NUM_THREADS=1 python -m benchmarks.eval_overhead --data-dir DIR --tasks mmlu_anatomy \
        --shots 5 --items 100 --positions 4096

A small WuNeng with random weights and its plain attention twin score the first items of
HellaSwag (``hellaswag_val.jsonl`` in DIR), or of each of ``--tasks``. Timed in turn, round after
round, in one process:

    bare shared    the unique token work and nothing else: calls of the model on tensors made
                   beforehand, without one pad. Questions, then endings on caches made beforehand,
                   each sorted by length and cut into batches of 32 rows; a batch of n tokens runs
                   as 32 rows of n / 32, rounded. The vocabulary meets one position of a question
                   and all of an ending.
    bare unshared  the same without sharing: every question with each ending, as many logits.
    eval           `wuneng eval` from built tasks to outcomes: requests, tokenisation, batches,
                   pads, caches, scores, per-item outcomes.
    lm-eval        lm-evaluation-harness with its own HFLM at batch 16, the same tasks.

Ratios are of processor seconds (one thread), which other work on the machine disturbs least, and
medians of the rounds' own ratios; wall seconds are beside them. `end to end` is the command in a
process of its own, once: imports, task files and model loading included.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

# One thread everywhere, also in the tokenizer: processor seconds then are what a core needs.
os.environ["RAYON_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"

import torch
from torch import Tensor

from wuneng.bench.machine import load_average
from wuneng.data.tokenizer import load_tokenizer
from wuneng.default_wiring import MIDDLE_WIRING
from wuneng.device import environment
from wuneng.evaluate.answers import Answers
from wuneng.evaluate.harness import run_tasks
from wuneng.evaluate.harness_model import HarnessModel
from wuneng.evaluate.loading import LoadedModel, load_model
from wuneng.evaluate.prefix_cache import CacheShapes
from wuneng.evaluate.request_plan import shared_prefixes
from wuneng.evaluate.task_loading import LoadedTasks, load_tasks, quiet_harness
from wuneng.model import WuNengConfig, WuNengForCausalLM
from wuneng.model.call_arguments import cache_of, with_cache
from wuneng.records import write_json

ARMS = {"wuneng": {"num_state_heads": 2, **MIDDLE_WIRING}, "mha": {"num_state_heads": 0}}
ROWS = 32


def save_arm(directory: Path, tokenizer: Any, options: argparse.Namespace, arm: str) -> None:
    """A transformers directory with random weights."""
    torch.manual_seed(0)
    config = WuNengConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=options.width // 64,
        max_position_embeddings=options.positions,
        output_init="normal",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **ARMS[arm],
    )
    WuNengForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def captured_requests(model: HarnessModel, tasks: LoadedTasks, items: int) -> Answers:
    """The token ids that the task asks for."""
    found: list[Any] = []

    def capture(requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        found.extend((question, answer) for _, question, answer in requests)
        return [(0.0, False)] * len(requests)

    model._loglikelihood_tokens = capture  # type: ignore[method-assign]
    run_tasks(model, tasks, limit=items)
    return Answers.of(found, model.max_length)


def even_batches(rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Sorted by length, in batches of 32 rows, all rows of a batch cut to their mean length."""
    ordered = sorted(rows, key=len)
    made = []
    for start in range(0, len(ordered), ROWS):
        batch = ordered[start : start + ROWS]
        tokens = [token for row in batch for token in row]
        length = max(1, round(len(tokens) / len(batch)))
        tokens = (tokens + tokens)[: length * len(batch)]
        made.append(torch.tensor(tokens).view(len(batch), length))
    return made


def copied(cache: Any, rows: int) -> Any:
    """A cache that a call may grow, its tensors the given ones."""
    new = copy.copy(cache)
    new.layers = []
    for layer in cache.layers:
        one = copy.copy(layer)
        one.keys, one.values = layer.keys[:rows], layer.values[:rows]
        one.states = {name: value[:rows] for name, value in layer.states.items()}
        new.layers.append(one)
    return new


class Bare:
    """Calls of the model on tensors made beforehand."""

    def __init__(self, model: Any, answers: Answers) -> None:
        groups, alone = shared_prefixes(answers.inputs)
        inputs = answers.inputs
        beginnings = [inputs[group.members[0]][: group.length] for group in groups]
        endings = [inputs[one][group.length :] for group in groups for one in group.members]
        self.model = model
        self.plain = even_batches(inputs)
        self.alone = even_batches([inputs[place] for place in alone])
        self.prefixes = even_batches(beginnings)
        self.endings = even_batches([ending for ending in endings if ending])
        self.mean_prefix = round(sum(map(len, beginnings)) / len(beginnings))
        self.scored = round(len(answers.targets) / len(inputs))
        self.tokens = {
            "unshared": sum(map(len, inputs)),
            "shared": sum(map(len, beginnings))
            + sum(map(len, endings))
            + sum(len(inputs[place]) for place in alone),
        }

    @torch.inference_mode()
    def prepare(self) -> None:
        ids = torch.zeros(ROWS, self.mean_prefix, dtype=torch.long)
        self.cache = cache_of(self.model(ids, use_cache=True, logits_to_keep=1))
        shapes = CacheShapes.of(self.model.base_model, self.model.device)
        state = shapes.row_bytes(0)
        self.kept_bytes = {
            "keys and values": shapes.row_bytes(self.mean_prefix) - state,
            "state and shift": state,
        }

    @torch.inference_mode()
    def unshared(self) -> None:
        for ids in self.plain:
            self.model(ids, use_cache=False, logits_to_keep=min(self.scored, ids.shape[1]))

    @torch.inference_mode()
    def shared(self) -> None:
        for ids in self.alone:
            self.model(ids, use_cache=False, logits_to_keep=min(self.scored, ids.shape[1]))
        for ids in self.prefixes:
            self.model(ids, use_cache=True, logits_to_keep=1)
        for ids in self.endings:
            self.model(ids, use_cache=True, **with_cache(copied(self.cache, len(ids))))


def harness_itself(loaded: LoadedModel, tasks: LoadedTasks, items: int) -> None:
    """lm-evaluation-harness without a line of ours."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    with quiet_harness(), contextlib.redirect_stderr(io.StringIO()):
        model = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=16)
        evaluate(model, {"tasks": dict(tasks.tasks)}, limit=items, bootstrap_iters=0)


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Processor and wall seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.process_time() - processor, time.perf_counter() - wall


def measure(directory: Path, tasks: LoadedTasks, options: argparse.Namespace) -> dict[str, Any]:
    """One arm: all contenders in turn."""
    loaded = load_model(directory, device=torch.device("cpu"))
    answers = captured_requests(HarnessModel(loaded), tasks, options.items)
    bare = Bare(loaded.model, answers)
    bare.prepare()
    calls: dict[str, Callable[[], object]] = {
        "bare shared": bare.shared,
        "eval": lambda: run_tasks(HarnessModel(loaded), tasks, limit=options.items),
        "bare unshared": bare.unshared,
        "lm-eval": lambda: harness_itself(loaded, tasks, options.items),
    }
    calls = {name: call for name, call in calls.items() if name not in options.skip}
    run_tasks(HarnessModel(loaded), tasks, limit=8)
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(options.rounds):
        for name, call in calls.items():
            samples[name].append(timed(call))
            print(f"  {directory.name} {name}: {samples[name][-1][0]:.2f} s", file=sys.stderr)
    first = {name: [one[0] for one in values] for name, values in samples.items()}

    def ratio(name: str, other: str) -> float | None:
        if name not in first or other not in first:
            return None
        return median(a / b for a, b in zip(first[name], first[other], strict=True))

    return {
        "parameters": loaded.model.num_parameters(),
        "requests": len(answers.offsets) - 1,
        "tokens": bare.tokens,
        "bytes_kept_of_a_mean_beginning": bare.kept_bytes,
        "processor_seconds": {name: median(values) for name, values in first.items()},
        "wall_seconds": {
            name: median(one[1] for one in values) for name, values in samples.items()
        },
        "samples_processor_seconds": first,
        "ratios": {
            "eval / bare shared": ratio("eval", "bare shared"),
            "eval / bare unshared": ratio("eval", "bare unshared"),
            "eval / lm-eval": ratio("eval", "lm-eval"),
            "lm-eval / bare unshared": ratio("lm-eval", "bare unshared"),
            "bare shared / bare unshared": ratio("bare shared", "bare unshared"),
        },
    }


def end_to_end(directory: Path, options: argparse.Namespace, out: Path) -> float:
    """Wall seconds of the command."""
    line = [sys.executable, "-m", "wuneng_cli.main", "eval", str(directory)]
    line += ["--tasks", options.tasks]
    line += [] if options.shots is None else ["--num-fewshot", str(options.shots)]
    line += ["--data-dir", str(options.data_dir), "--limit", str(options.items)]
    line += ["--baseline", "none", "--device", "cpu", "--out", str(out), "--quiet"]
    start = time.perf_counter()
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Measure both arms and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--tokenizer", default="bytes", help="bytes, or a tokenizer directory")
    parser.add_argument("--tasks", default="hellaswag", metavar="A,B")
    parser.add_argument("--shots", type=int, help="examples before each question")
    parser.add_argument("--items", type=int, default=1000, help="of each task")
    parser.add_argument("--positions", type=int, default=1024, help="that the models have")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--skip", nargs="*", default=[], help="contenders to leave out")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    before = load_average()
    tokenizer = load_tokenizer(options.tokenizer)
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        (work / "data").mkdir()
        started = time.process_time()
        tasks = load_tasks(
            options.tasks.split(","),
            data_dir=options.data_dir,
            workspace=work / "data",
            num_fewshot=options.shots,
        )
        loading = time.process_time() - started
        arms = {}
        for arm in options.arms:
            save_arm(work / arm, tokenizer, options, arm)
            arms[arm] = measure(work / arm, tasks, options)
            if "end to end" not in options.skip:
                arms[arm]["end_to_end_wall_seconds"] = end_to_end(work / arm, options, work / "out")
    record = {
        "schema": 1,
        "environment": environment(["python", "-m", "benchmarks.eval_overhead"]),
        "threads": 1,
        "load_average": {"start": before, "end": load_average()},
        "task": options.tasks,
        "shots": options.shots,
        "items": options.items,
        "rounds": options.rounds,
        "tokenizer_size": len(tokenizer),
        "model": {"hidden_size": options.width, "num_hidden_layers": options.layers},
        "load_tasks_processor_seconds": loading,
        "arms": arms,
    }
    for arm, figures in arms.items():
        print(f"{arm}: {figures['parameters']:,} parameters, tokens {figures['tokens']}")
        for name, value in figures["processor_seconds"].items():
            print(f"  {value:8.2f} s  {name}")
        for name, value in figures["ratios"].items():
            if value is not None:
                print(f"  {value:8.3f}    {name}")
    if options.out:
        write_json(options.out, record)


if __name__ == "__main__":
    main()
