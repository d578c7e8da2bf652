"""Several processes give the losses of one: DDP, FSDP2 and both, for every built-in arm.

How near is near enough? One process' float32 losses are off from float64's by what float32 loses;
that, measured in the same test over the same steps, is the scale. Several processes add the same
numbers up in another order, so they may be off from float64 by ``FACTOR`` times as much, as
everything here that orders its sums otherwise. Over many steps training multiplies a rounding by a
million, and two float32 runs are no longer near each other, whoever made them: both sides are in
float64 then, and what is reported of them, in float32, agrees. Batches are of packed documents,
some rows score nothing, and rows do not divide evenly among processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle

import pytest
import torch

from tests.distributed.cases import SMALLER, Case, alone, losses, reductions
from tests.distributed.pool import Pool, pool
from tests.precision import FACTOR, FLOOR
from wuneng.distributed.degrees import Degrees
from wuneng.distributed.processes import ALONE
from wuneng.ops import using
from wuneng.recipe import BUILT_IN_ARMS

DDP, FSDP = Degrees(replicate=2), Degrees(shard=2)
HSDP = Degrees(replicate=2, shard=2)
WAYS = [
    pytest.param(DDP, id="ddp 2"),
    pytest.param(FSDP, id="fsdp 2"),
    pytest.param(HSDP, id="hsdp 2x2"),
]
CONTEXTS = [
    pytest.param(Degrees(context=2), id="context 2"),
    pytest.param(Degrees(context=4), id="context 4"),
]
EVERY_WAY = [DDP, FSDP, HSDP, Degrees(context=2), Degrees(context=4)]
EPS = torch.finfo(torch.float32).eps


@pytest.fixture(scope="module")
def processes() -> Iterator[Pool]:
    with pool(4) as started:
        yield started


def together(processes: Pool, case: Case) -> torch.Tensor:
    """Loss and norm of every step, of which every process says the same."""
    everywhere = processes.run(case.degrees.size, losses, case)
    assert all(found == everywhere[0] for found in everywhere), "processes disagree"
    return torch.tensor(everywhere[0], dtype=torch.float64)


def exact(case: Case) -> torch.Tensor:
    """The same of one process in float64."""
    one = replace(case, degrees=Degrees(), dtype=torch.float64)
    return torch.tensor(alone(one), dtype=torch.float64)


def assert_near(found: torch.Tensor, wide: torch.Tensor, lost: torch.Tensor | float) -> None:
    off = (found - wide).abs().amax(0) / wide.abs().amax(0)
    allowed = (FACTOR * torch.as_tensor(lost)).clamp(min=FLOOR * EPS)
    assert (off <= allowed).all(), f"loss and norm are off by {off}, allowed are {allowed}"


def check(processes: Pool, case: Case) -> None:
    """A few steps in float32."""
    found, wide, one = together(processes, case), exact(case), replace(case, degrees=Degrees())
    drawn = [alone(one)]
    if "training.optimizer=muon" in case.changes:
        # It makes a singular value that is all rounding as large as any: what float32 loses then is
        # the plain formulas' to say too.
        with using("reference"):
            drawn.append(losses(ALONE, one))
    lost = (torch.tensor(drawn, dtype=torch.float64) - wide).abs().amax((0, 1))
    assert_near(found, wide, lost / wide.abs().amax(0))


def check_fifty_steps(processes: Pool, arm: str, degrees: Degrees, steps: int = 50) -> None:
    """Of the quickstart's model as it is, in float64."""
    case = Case(arm, degrees, steps=steps, changes=(), dtype=torch.float64)
    wide = exact(case)
    assert_near(together(processes, case), wide, 0.0)
    assert wide[-1, 0] < wide[0, 0], "nothing was learned"


@pytest.mark.parametrize("arm", ["wuneng", "mha-conv", "interleaved", "gated-delta", "rwkv7"])
def test_arms_are_cut(processes: Pool, arm: str) -> None:
    check(processes, Case(arm, FSDP))


@pytest.mark.parametrize("degrees", [WAYS[0], WAYS[2]])
@pytest.mark.parametrize("arm", ["wuneng", "rwkv7"])
def test_copies(processes: Pool, degrees: Degrees, arm: str) -> None:
    check(processes, Case(arm, degrees))


@pytest.mark.parametrize(
    ("arm", "degrees"),
    [
        ("wuneng", Degrees(context=4)),
        ("mha-conv", Degrees(shard=2, context=2)),
        ("rwkv7", Degrees(replicate=2, context=2)),
    ],
)
def test_sequences_are_cut(processes: Pool, degrees: Degrees, arm: str) -> None:
    check(processes, Case(arm, degrees))


@pytest.mark.parametrize("degrees", [*WAYS, *CONTEXTS])
def test_fifty_steps_of_the_quickstart(processes: Pool, degrees: Degrees) -> None:
    check_fifty_steps(processes, "wuneng", degrees)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arm", "degrees"),
    # Every other arm in one of the ways, in turn: each way with each arm takes ten minutes.
    list(zip([a for a in BUILT_IN_ARMS if a != "wuneng"], cycle(EVERY_WAY), strict=False)),
)
def test_fifty_steps_of_every_arm(processes: Pool, degrees: Degrees, arm: str) -> None:
    check_fifty_steps(processes, arm, degrees)


@pytest.mark.parametrize("degrees", [DDP, FSDP, Degrees(context=2)], ids=["ddp", "fsdp", "context"])
@pytest.mark.parametrize(
    "change",
    [
        "training.micro_batch_size=1",
        "training.activation_checkpointing=2",
        "training.optimizer=muon",
        "model.tie_word_embeddings=false",
        "training.clip=0.1",
    ],
)
def test_settings_mean_the_same(processes: Pool, degrees: Degrees, change: str) -> None:
    check(processes, Case("wuneng", degrees, changes=(*SMALLER, change)))


@pytest.mark.parametrize("degrees", [DDP, FSDP], ids=["ddp", "fsdp"])
def test_micro_batches_add_gradients_up_once_a_step(processes: Pool, degrees: Degrees) -> None:
    """Each process keeps those of all but the last, and sends nothing for them."""
    whole = Case("wuneng", degrees, steps=1, rows=4)
    parts = replace(whole, changes=(*SMALLER, "training.micro_batch_size=1"))
    once, found = (processes.run(2, reductions, case) for case in (whole, parts))
    assert found == once
    assert min(once) > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("degrees", [DDP, FSDP], ids=["ddp", "fsdp"])
def test_two_processes_are_two_micro_batches_bit_for_bit(
    processes: Pool, degrees: Degrees, precision: str
) -> None:
    """The same rows together, the same two sums: not a bit of a loss differs. (The norm of what is
    cut is summed in another order; without clipping nothing hangs on it.)"""
    changes = (*SMALLER, "training.clip=0", f"training.precision={precision}")
    two = processes.run(2, losses, Case("wuneng", degrees, rows=4, changes=changes))
    halves = alone(Case("wuneng", rows=4, changes=(*changes, "training.micro_batch_size=2")))
    assert [loss for loss, _ in two[0]] == [loss for loss, _ in halves]


@pytest.mark.parametrize(("arm", "reduce"), [("wuneng", "precision"), ("rwkv7", "fp32")])
def test_weights_gathered_in_bf16_train_nearly_as_float32(
    processes: Pool, arm: str, reduce: str
) -> None:
    """As near to float32's losses, by a factor, as one process' autocast; other bits than with
    gathers in float32; master weights stay float32 (``losses`` looks)."""
    changes = (*SMALLER, "training.precision=bf16")
    precise = alone(Case(arm, steps=20))
    one = alone(Case(arm, steps=20, changes=changes))
    mixed = Case(arm, FSDP, 20, changes, gather="precision", reduce=reduce)
    found = processes.run(2, losses, mixed)[0]
    assert found != processes.run(2, losses, Case(arm, FSDP, 20, changes))[0]

    def away(values: list[tuple[float, float]]) -> float:
        return max(abs(mine[0] - its[0]) for mine, its in zip(values, precise, strict=True))

    assert away(found) <= 4 * away(one)
    assert found[-1][0] < found[0][0]
