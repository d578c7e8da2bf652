"""AdamW with moments in bfloat16 and in eight bits, where there is torchao (``.ci/optional``)."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.distributed.cases import SMALLER, Case, losses
from tests.distributed.pool import pool
from tests.train.small_run import recipe
from tests.train.tiny import TinyModel, tiny_training
from wuneng.distributed.degrees import Degrees
from wuneng.distributed.processes import ALONE, Processes
from wuneng.distributed.save_group import SaveGroup
from wuneng.errors import InputError
from wuneng.train import Workers, checkpoint, run, sharded
from wuneng.train.checkpoint import Checkpoint
from wuneng.train.optimizer import build_optimizer, named_state, set_learning_rate
from wuneng.train.trainer_state import TrainerState

LOW = ("adamw-bf16", "adamw-8bit")


class Matrices(nn.Module):
    """One whose moments are held in few bits, and one that is too small for that."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.large = nn.Parameter(torch.randn(64, 128))
        self.small = nn.Parameter(torch.randn(7))


@pytest.fixture
def torchao() -> Iterator[None]:
    """With its step as it stands: compiling takes longer than all else here."""
    pytest.importorskip("torchao", reason="torchao is not installed")
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        draw = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = 1 + torch.randn(parameter.shape, generator=draw)
        set_learning_rate(optimizer, 0.01 / step)
        optimizer.step()


def built(optimizer: str) -> tuple[Matrices, torch.optim.Optimizer]:
    model = Matrices()
    kinds = {"large": "decay", "small": "no_decay"}
    return model, build_optimizer(model, tiny_training(optimizer=optimizer), kinds)


def held(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    return weights | {name: t.clone() for name, t in named_state(model, optimizer).items()}


@pytest.mark.parametrize(
    ("optimizer", "bytes_each", "off"), [(LOW[0], 4, 0.005), (LOW[1], 2, 0.05)]
)
def test_low_bit_moments_move_nearly_as_adamw(
    torchao: None, optimizer: str, bytes_each: int, off: float
) -> None:
    (model, low), (other, plain) = built(optimizer), built("adamw")
    steps(model, low, 1, 9)
    steps(other, plain, 1, 9)
    moved = (other.large - Matrices().large).norm()
    assert 0 < (model.large - other.large).norm() < off * moved
    torch.testing.assert_close(model.small, other.small)
    kept = named_state(model, low)
    moments = [t for name, t in kept.items() if name.endswith("/large") and t.dim() == 2]
    size = model.large.numel()
    assert sum(t.nbytes for t in moments) == bytes_each * size
    assert tiny_training(optimizer=optimizer).moment_bytes == bytes_each


@pytest.mark.parametrize("optimizer", LOW)
@pytest.mark.parametrize("kind", ["whole", "shards"])
def test_low_bit_moments_go_on_from_a_checkpoint_to_the_bit(
    torchao: None, tmp_path: Path, optimizer: str, kind: str
) -> None:
    model, low = built(optimizer)
    steps(model, low, 1, 4)
    state = TrainerState("tiny", 0, step=3)
    if kind == "whole":
        path = checkpoint.save(tmp_path, model, low, state, keep=1)
    else:
        names: Any = {"trainer": checkpoint.TRAINER, "manifest": checkpoint.MANIFEST}
        content = sharded.content(model, low, state).copied()
        sharded.write(tmp_path, content, SaveGroup(), written=lambda: None, **names)
        path = tmp_path / "step-3"
    other, its = built(optimizer)
    checkpoint.restore(Checkpoint(path, state), other, its)
    for one, its_optimizer in ((model, low), (other, its)):
        steps(one, its_optimizer, 4, 7)
    found, expected = held(other, its), held(model, low)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def test_low_bit_moments_train_a_run(torchao: None, tmp_path: Path) -> None:
    written = recipe(tmp_path, "training.optimizer=adamw-8bit", "arms=[wuneng, mha]")
    results = run(written, tmp_path / "run", workers=Workers(1))
    assert all(results.record["arms"].values())


def eager_losses(processes: Processes, case: Case) -> list[tuple[float, float]]:
    torch.compiler.set_stance("force_eager")
    return losses(processes, case)


@pytest.mark.parametrize(
    ("degrees", "optimizers"),
    [(Degrees(replicate=2), LOW), (Degrees(shard=2), ["adamw-bf16"])],
    ids=["ddp", "fsdp"],
)
def test_low_bit_moments_of_two_processes(
    torchao: None, degrees: Degrees, optimizers: Sequence[str]
) -> None:
    with pool(2) as processes:
        for optimizer in optimizers:
            changes = (*SMALLER, f"training.optimizer={optimizer}")
            case = Case("wuneng", degrees, steps=6, changes=changes)
            found = processes.run(2, eager_losses, case)
            alone = eager_losses(ALONE, replace(case, degrees=Degrees()))
            assert found[0] == found[1]
            for mine, its in zip(found[0], alone, strict=True):
                assert mine == pytest.approx(its, rel=1e-3)


def test_what_is_not_installed_is_said_before_anything_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    there = {"torchao": lambda name: None}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: there.get(name, find)(name))
    written = recipe(tmp_path, "arms.mha.training.optimizer=adamw-8bit")
    with pytest.raises(InputError, match=r"'adamw-8bit' needs .* pip install torchao"):
        run(written, tmp_path / "run", workers=Workers(1))
    assert not list(tmp_path.glob("run/**/metrics.jsonl"))
    with pytest.raises(InputError, match="pip install torchao"):
        build_optimizer(TinyModel(), tiny_training(optimizer="adamw-bf16"))
