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

from wuneng.data.batch import IGNORED, Batch
from wuneng.distributed.degrees import SINGLE, Degrees
from wuneng.distributed.processes import ALONE, Processes
from wuneng.distributed.wrapping import cut
from wuneng.model import WuNengForCausalLM
from wuneng.recipe import BUILT_IN_ARMS, load_recipe
from wuneng.train import step as step_module
from wuneng.train.display import QuietDisplay
from wuneng.train.opening import Opening
from wuneng.train.optimizer import build_optimizer
from wuneng.train.plan import RunPlan, plan_run
from wuneng.train.run import run_opened
from wuneng.train.signals import Interrupted
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
    cut(model, processes, case.degrees, device)
    optimizer = build_optimizer(model, settings)
    numerics = Numerics(device, processes=processes, degrees=case.degrees)
    called = prepare_model(model, settings, numerics)
    found = []
    for step in range(1, case.steps + 1):
        batch = packed_batch(step, case.rows, arm.config.vocab_size)
        outcome = take_step(called, optimizer, batch, settings, numerics, step=step, arm=case.arm)
        found.append((outcome.loss, outcome.grad_norm))
    return found


@cache
def alone(case: Case) -> list[tuple[float, float]]:
    """``losses`` in this process."""
    return losses(ALONE, case)


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
