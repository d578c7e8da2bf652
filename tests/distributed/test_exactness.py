"""Several processes give the losses of one: DDP, FSDP2 and both, for every built-in arm.

How near is near enough? One process' float32 losses are off from float64's by what float32 loses;
that, measured in the same test over the same steps, is the scale. Several processes add the same
numbers up in another order, so they may be off from float64 by a few times as much and no more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
import torch

from tests.distributed.cases import Case, alone, train
from tests.distributed.pool import Pool, pool
from wuneng.distributed.degrees import Degrees
from wuneng.recipe import BUILT_IN_ARMS

DDP, FSDP = Degrees(replicate=2), Degrees(shard=2)
HSDP = Degrees(replicate=2, shard=2)
#: Rounding errors of another order of sums: as large as those of the usual one, with some luck.
TIMES = 4


@pytest.fixture(scope="module")
def processes() -> Iterator[Pool]:
    with pool(4) as started:
        yield started


@cache
def _errors_of_float32(arm: str, steps: int, micro: int | None) -> tuple[list[float], float]:
    changes = {} if micro is None else {"training.micro_batch_size": micro}
    case = Case(arm, steps=steps, changes=changes)
    exact = alone(replace(case, dtype=torch.float64))["losses"]
    found = alone(case)["losses"]
    return exact, max(abs(a - b) for a, b in zip(exact, found, strict=True))


def check(processes: Pool, case: Case) -> None:
    exact, lost = _errors_of_float32(
        case.arm, case.steps, case.changes.get("training.micro_batch_size")
    )
    everywhere = processes.run(case.degrees.size, train, case)
    assert all(found == everywhere[0] for found in everywhere), "processes disagree"
    # A loss of float32 has some rounding of its own, which a lucky run may not show.
    bound = TIMES * max(lost, torch.finfo(torch.float32).eps * max(exact))
    off = max(abs(a - b) for a, b in zip(exact, everywhere[0]["losses"], strict=True))
    assert off <= bound
    assert exact[-1] != exact[0]


@pytest.mark.parametrize("arm", BUILT_IN_ARMS)
@pytest.mark.parametrize("degrees", [DDP, FSDP, HSDP], ids=["ddp 2", "fsdp 2", "hsdp 2x2"])
def test_losses_of_every_arm(processes: Pool, degrees: Degrees, arm: str) -> None:
    check(processes, Case(arm, degrees))
