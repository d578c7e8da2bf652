"""What the processes of ``pool`` do: train a small model, and tell what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from wuneng.data.batch import IGNORED, Batch
from wuneng.distributed.degrees import SINGLE, Degrees
from wuneng.distributed.processes import ALONE, Processes
from wuneng.distributed.wrapping import cut
from wuneng.model import WuNengForCausalLM
from wuneng.recipe import BUILT_IN_ARMS, load_recipe
from wuneng.train.optimizer import build_optimizer
from wuneng.train.plan import RunPlan, plan_run
from wuneng.train.step import Numerics, prepare_model, take_step
from wuneng.train.trainer_state import seed_everything

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
#: Rows that no 2, 3 or 4 processes share evenly.
ROWS, LENGTH = 5, 24


@dataclass(frozen=True)
class Case:
    """A short training of one of the quickstart's arms."""

    arm: str = "wuneng"
    degrees: Degrees = SINGLE
    steps: int = 4
    dtype: torch.dtype = torch.float32
    changes: dict[str, Any] = field(default_factory=dict)
    """Of the recipe."""
    rows: int = ROWS


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


def train(processes: Processes, case: Case) -> dict[str, Any]:
    """The losses and gradient norms of every step, and the weights at the end."""
    plan = planned(tuple(f"{name}={value}" for name, value in case.changes.items()))
    arm = plan.arms[case.arm]
    settings = arm.training
    seed_everything(0)
    model = WuNengForCausalLM(arm.config).to(case.dtype)
    device = torch.device("cpu")
    cut(model, processes, case.degrees, device)
    optimizer = build_optimizer(model, settings)
    numerics = Numerics(device, processes=processes, degrees=case.degrees)
    called = prepare_model(model, settings, numerics)
    losses, norms = [], []
    for step in range(1, case.steps + 1):
        batch = packed_batch(step, case.rows, arm.config.vocab_size)
        outcome = take_step(called, optimizer, batch, settings, numerics, step=step, arm=case.arm)
        losses.append(outcome.loss)
        norms.append(outcome.grad_norm)
    return {"losses": losses, "norms": norms}


def alone(case: Case) -> dict[str, Any]:
    """``train`` in this process."""
    return train(ALONE, case)
