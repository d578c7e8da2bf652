"""What the processes of ``pool`` do: train a small model, and tell what came of it."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from tests.train import small_upgrade
from wuneng.convert import ConvertedSources
from wuneng.data.batch import IGNORED, Batch
from wuneng.device import autocast_dtype
from wuneng.distributed.degrees import SINGLE, Degrees
from wuneng.distributed.processes import ALONE, Processes
from wuneng.distributed.wrapping import cut
from wuneng.model import WuNengForCausalLM
from wuneng.recipe import BUILT_IN_ARMS, Parallel, load_recipe
from wuneng.train import loop
from wuneng.train import step as step_module
from wuneng.train.display import QuietDisplay
from wuneng.train.opening import Opening
from wuneng.train.optimizer import build_optimizer
from wuneng.train.plan import RunPlan, plan_run
from wuneng.train.run import run_opened
from wuneng.train.signals import Interrupted
from wuneng.train.spread import cut_dtypes
from wuneng.train.step import Numerics, prepare_model, take_step
from wuneng.train.trainer_state import seed_everything
from wuneng.train.workers import Workers

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
#: Rows that no 2, 3 or 4 processes share evenly.
ROWS, LENGTH = 5, 24
#: Of the quickstart's model, where every arm is tried in a moment.
SMALLER = ("model.hidden_size=32", "model.decay_rank=4", "model.rate_rank=4")


@dataclass(frozen=True)
class Case:
    """A short training of one of the quickstart's arms."""

    arm: str = "wuneng"
    degrees: Degrees = SINGLE
    steps: int = 3
    changes: tuple[str, ...] = SMALLER
    """Of the recipe."""
    rows: int = ROWS
    dtype: torch.dtype = torch.float32
    gather: str = "fp32"
    reduce: str = "fp32"


@cache
def planned(changes: tuple[str, ...] = ()) -> RunPlan:
    """The quickstart with every built-in arm."""
    arms = ",".join(BUILT_IN_ARMS)
    return plan_run(load_recipe(RECIPES / "quickstart.yaml", [f"arms=[{arms}]", *changes]))


def packed_batch(number: int, rows: int, vocabulary: int) -> Batch:
    """Rows of several documents, which score from none to all of their tokens."""
    draw = torch.Generator().manual_seed(number)
    tokens = torch.randint(vocabulary, (rows, LENGTH + 1), generator=draw)
    tokens[:, 1::2] = tokens[:, :-1:2]  # something to learn
    labels = tokens[:, 1:].clone()
    for row in range(rows):
        labels[row, : row * LENGTH // (rows - 1)] = IGNORED
    ends = torch.rand(rows, LENGTH, generator=draw) < 0.15
    return Batch(tokens[:, :-1], labels, ends.cumsum(1).int(), "text", LENGTH)


def losses(processes: Processes, case: Case) -> list[tuple[float, float]]:
    """Loss and gradient norm of every step."""
    arm = planned(case.changes).arms[case.arm]
    settings, device = arm.training, torch.device("cpu")
    seed_everything(0)
    model = WuNengForCausalLM(arm.config).to(case.dtype)
    precision = autocast_dtype(settings.precision, device)
    types = cut_dtypes(Parallel(gather=case.gather, reduce=case.reduce), precision)
    cut(model, processes, case.degrees, device, **types)
    optimizer = build_optimizer(model, settings)
    numerics = Numerics.pick(device, precision, processes, case.degrees)
    called = prepare_model(model, settings, numerics)
    found = []
    for step in range(1, case.steps + 1):
        batch = packed_batch(step, case.rows, arm.config.vocab_size)
        outcome = take_step(called, optimizer, batch, settings, numerics, step=step, arm=case.arm)
        found.append((outcome.loss, outcome.grad_norm))
    assert {p.dtype for p in model.parameters()} == {case.dtype}, "what is updated stays exact"
    return found


def reductions(processes: Processes, case: Case) -> int:
    """How often gradients are added up among ``processes``."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        losses(processes, case)
    kinds = ("c10d::allreduce_", "c10d::_reduce_scatter_base_")  # of DDP, of FSDP
    return sum(event.name in kinds for event in seen.events() or ())


@cache
def alone(case: Case) -> list[tuple[float, float]]:
    """``losses`` in this process."""
    return losses(ALONE, case)


def run_upgrade(processes: Processes, place: Path, out: Path, changes: tuple[str, ...]) -> None:
    """Train the four arms of ``small_upgrade``: one scored, one new, adapters, one taught."""
    sources = ConvertedSources()
    opening = Opening(QuietDisplay(StringIO()), None, sources, True, Workers(1), processes)
    run_opened(small_upgrade.recipe(place, *changes), out, "auto", out.parent, opening)


def best_steps(
    processes: Processes, recipe: Path, changes: tuple[str, ...], off: float
) -> list[int]:
    """The steps of checkpoints that are kept where the best is, though what the last process
    measures is ``off`` by that much at every pass but the first."""
    measure, passes = loop.measure, [0]

    def measured(*args: Any, **named: Any) -> Any:
        quality = measure(*args, **named)
        passes[0] += 1
        if passes[0] > 1 and processes.rank == processes.size - 1:
            quality.values = {name: value + off for name, value in quality.values.items()}
        return quality

    loop.measure = measured
    try:
        assert run_text(processes, recipe, changes, None)[0] == "finished"
    finally:
        loop.measure = measure
    found = (recipe.parent / "runs" / "text" / "wuneng" / "checkpoints").glob("step-*")
    return sorted(int(path.name.removeprefix("step-")) for path in found)


def compiled_losses(processes: Processes, case: Case) -> tuple[list[tuple[float, float]], int]:
    """``losses``, and how many graphs torch.compile made (for an executor that needs no C++
    compiler: what is tried is how compiled blocks are joined)."""
    graphs, compiling = [0], torch.compile

    def counting(graph: Any, inputs: Any) -> Any:
        graphs[0] += 1
        return graph.forward

    torch.compile = lambda function: compiling(function, backend=counting)
    try:
        return losses(processes, case), graphs[0]
    finally:
        torch.compile = compiling
        torch._dynamo.reset()


def run_text(
    processes: Processes, recipe: Path, changes: tuple[str, ...], stop: tuple[int, int] | None
) -> tuple[str, list[tuple[int, list[str]]]]:
    """Train or continue ``recipe``; (how it ended, the rows that this process scored at each step).

    Args:
        stop: this step, and the process that is sent SIGTERM at it.
    """
    seen: list[tuple[int, list[str]]] = []
    take = step_module._backward

    def noting(model: Any, batch: Batch, training: Any, numerics: Numerics, *rest: Any) -> Any:
        mine = numerics.share(batch)
        scored = (mine.labels != IGNORED).any(1)
        seen.append((len(seen), [str(row.tolist()) for row in mine.input_ids[scored]]))
        if stop is not None and (len(seen), processes.rank) == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return take(model, batch, training, numerics, *rest)

    display = QuietDisplay(StringIO())
    opening = Opening(display, None, None, True, Workers(1), processes)
    step_module._backward = noting
    try:
        run_opened(load_recipe(recipe, changes), None, "auto", recipe.parent / "runs", opening)
    except Interrupted as stopped:
        return str(stopped), seen
    finally:
        step_module._backward = take
    return "finished", seen
