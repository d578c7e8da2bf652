"""Checkpoints of which every process writes its own part."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import faults
from tests.distributed.cases import run_text
from tests.distributed.pool import Pool, pool
from tests.distributed.test_resume import STEPS, metrics, recipe
from tests.precision import FACTOR, FLOOR
from wuneng.distributed.processes import ALONE
from wuneng.errors import DiskError, InputError, MissingProcess
from wuneng.model.pretrained import load_whole_model
from wuneng.train import checkpoint

CUT = "parallel.shard=2"
ASIDE = "training.async_checkpoints=true"


@pytest.fixture(scope="module")
def processes() -> Iterator[Pool]:
    with pool(4) as started:
        yield started


@pytest.fixture
def mortal() -> Iterator[Pool]:
    """New ones for a test that kills some of them."""
    with pool(2) as started:
        yield started


Curves = list[list[dict[str, Any]]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Curves:
    """One process' metrics, in two orders of its sums."""
    found = []
    for name, changes in (("undisturbed", ()), ("spread", ("training.micro_batch_size=1",))):
        path = recipe(tmp_path_factory.mktemp("alone") / name)
        run_text(ALONE, path, changes, None)
        found.append(metrics(path))
    return found


def saved(path: Path) -> dict[str, set[str]]:
    place = path.parent / "runs" / "text" / "wuneng" / "checkpoints"
    return {step.name: {file.name for file in step.iterdir()} for step in place.iterdir()}


def shards(number: int) -> set[str]:
    return {f"shard-{n:05}-model-00001-of-00001.safetensors" for n in range(1, number + 1)}


@pytest.mark.parametrize("aside", [(), (ASIDE,)], ids=["at once", "aside"])
def test_two_four_one(
    processes: Pool, alone: Curves, tmp_path: Path, aside: tuple[str, ...]
) -> None:
    path = recipe(tmp_path / "changing")
    beside = {"trainer.json", "manifest.json"}
    processes.run(2, run_text, path, (CUT, *aside), (3, 0))
    assert saved(path) == {f"step-{n}": shards(2) | beside for n in (2, 3)}
    processes.run(4, run_text, path, ("parallel.shard=4", *aside), (3, 2))
    assert saved(path) == {f"step-{n}": shards(4) | beside for n in (4, 6)}
    assert run_text(ALONE, path, aside, None)[0] == "finished"
    assert [run.name for run in path.parent.glob("runs/text*")] == ["text"], "not begun anew"
    assert saved(path)["step-9"] == {"model.safetensors", "optimizer.safetensors"} | beside
    load_whole_model(path.parent / "runs" / "text" / "wuneng" / "model")

    assert [row["step"] for row in metrics(path)] == list(range(1, STEPS + 1))
    found, one, other = (
        torch.tensor([row["loss"] for row in rows]).double() for rows in (metrics(path), *alone)
    )
    allowed = FACTOR * (one - other).abs().max() + FLOOR * torch.finfo(torch.float32).eps * one
    assert ((found - one).abs() <= allowed).all()


@pytest.mark.parametrize("ways", [("parallel.replicate=2", "parallel.shard=2"), ()])
def test_copies_write_everything_once(
    processes: Pool, tmp_path: Path, ways: tuple[str, ...]
) -> None:
    """HSDP, and DDP where it is asked for: together the shards are as large as a whole one."""
    path = recipe(tmp_path / "run")
    processes.run(4, run_text, path, (*ways, "parallel.checkpoints=sharded"), (2, 0))
    [step] = (path.parent / "runs" / "text" / "wuneng" / "checkpoints").iterdir()
    size = sum(file.stat().st_size for file in step.glob("shard-*"))
    assert len(list(step.glob("shard-*"))) > 1
    other = recipe(tmp_path / "whole")
    run_text(ALONE, other, ("parallel.checkpoints=whole",), (2, 0))
    [whole] = (other.parent / "runs" / "text" / "wuneng" / "checkpoints").iterdir()
    once = sum(file.stat().st_size for file in whole.glob("*.safetensors"))
    headers = 120_000
    assert once * 0.8 < size < once + headers
    assert run_text(ALONE, path, (), None)[0] == "finished"


@pytest.mark.parametrize(("rank", "aside"), [(0, (ASIDE,)), (1, ()), (1, (ASIDE,))])
def test_a_process_is_killed_while_it_writes_its_shard(
    mortal: Pool, tmp_path: Path, rank: int, aside: tuple[str, ...]
) -> None:
    path = recipe(tmp_path / "run")
    mortal.begin(
        2, faults.while_writing_a_shard, path, rank, faults.killed, (CUT, *aside), beat=0.25
    )
    error = mortal.end(2)[1 - rank]
    assert isinstance(error, MissingProcess)
    assert f"process {rank} of 2 was killed" in str(error)
    assert [step for step in saved(path) if not step.startswith(".")] == ["step-2"]
    place = path.parent / "runs" / "text" / "wuneng" / "checkpoints"
    assert checkpoint.verify(place / "step-2").state.step == 2
    assert run_text(ALONE, path, aside, None)[0] == "finished"
    assert [row["step"] for row in metrics(path)] == list(range(1, STEPS + 1))


def test_a_disk_that_is_full_for_one_is_told_to_all(mortal: Pool, tmp_path: Path) -> None:
    path = recipe(tmp_path / "run")
    mortal.begin(2, faults.while_writing_a_shard, path, 1, faults.full, (CUT, ASIDE), beat=0.25)
    for error in mortal.end(2):
        assert isinstance(error, DiskError), error
        assert "step-4: the disk is full" in str(error)
    assert list(saved(path)) == ["step-2"]


def test_a_shard_that_the_first_does_not_see(mortal: Pool, tmp_path: Path) -> None:
    path = recipe(tmp_path / "run")
    mortal.begin(2, faults.while_writing_a_shard, path, 1, faults.elsewhere, (CUT,), beat=0.25)
    for error in mortal.end(2):
        assert isinstance(error, InputError), error
        assert "on a file system that all hosts share" in str(error)
    assert list(saved(path)) == ["step-2"]
