"""A checkpoint in shards: its bits, its damage, another model's."""

import json
import math
import multiprocessing
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.damage import alter, empty, truncate
from tests.train.test_checkpoint import remove, trained
from tests.train.tiny import tiny_training
from wuneng.device import resident_bytes
from wuneng.distributed.save_group import SaveGroup
from wuneng.errors import CheckpointError, InputError
from wuneng.records.checksums import seal_directory
from wuneng.train import checkpoint, sharded
from wuneng.train.model_tensors import model_tensors
from wuneng.train.optimizer import build_optimizer, named_state
from wuneng.train.trainer_state import TrainerState

SHARD = "shard-00001-model-00001-of-00001.safetensors"


def save(parent: Path, step: int, seed: int = 0, **changes: Any) -> Path:
    model, optimizer = trained(seed)
    held = sharded.content(model, optimizer, TrainerState("tiny", seed, step=step))
    names = {"trainer": checkpoint.TRAINER, "manifest": checkpoint.MANIFEST}
    settings = {"written": lambda: None, **names, **changes}
    sharded.write(parent, held.copied(), SaveGroup(), **settings)
    return parent / f"step-{step}"


def test_every_bit_comes_back(tmp_path: Path) -> None:
    save(tmp_path, 4, seed=1)
    found = checkpoint.latest_usable(tmp_path, pytest.fail)
    assert found is not None
    (model, optimizer), (other, its) = trained(seed=1), trained(seed=2)
    assert not torch.equal(model.w0, other.w0)
    checkpoint.restore(found, other, its)
    for mine, read in (
        (model_tensors(model), model_tensors(other)),
        (named_state(model, optimizer), named_state(other, its)),
    ):
        assert mine.keys() == read.keys()
        assert all(torch.equal(mine[name], read[name]) for name in mine)


def test_moments_of_a_phase_that_was_over_stay_out(tmp_path: Path) -> None:
    """Of whole checkpoints as of shards: the next phase begins with its own."""
    shards = checkpoint.verify(save(tmp_path / "shards", 4, seed=1))
    model, optimizer = trained(seed=1)
    state = TrainerState("tiny", 1, step=4)
    whole = checkpoint.verify(checkpoint.save(tmp_path / "whole", model, optimizer, state, keep=1))
    for found in (shards, whole):
        other, its = trained(seed=2)
        before = {name: moment.clone() for name, moment in named_state(other, its).items()}
        checkpoint.restore(found, other, its, moments=False)
        assert torch.equal(model.w0, other.w0)
        after = named_state(other, its)
        assert all(torch.equal(after[name], moment) for name, moment in before.items())


NUMBER, SHAPE = 8, (1024, 1024)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for its memory")
def test_what_is_read_back_is_not_held_twice(tmp_path: Path) -> None:
    """Weights are read piece by piece into the model's own, and moments are the optimiser's.

    In a process of its own: what other tests have freed would be taken before new memory is.
    """
    with multiprocessing.get_context("spawn").Pool(1) as alone:
        peak = alone.apply(_peak_of_reading_back, (tmp_path,))
    moments, one = 2 * NUMBER * 4 * math.prod(SHAPE), 4 * math.prod(SHAPE)
    assert 0.9 * moments < peak < moments + 3 * one


def _peak_of_reading_back(place: Path) -> int:
    """Bytes that reading a checkpoint of shards adds at most to what the process holds."""

    def built() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        model = torch.nn.ParameterDict({f"w{n}": torch.ones(SHAPE) for n in range(NUMBER)})
        kinds = dict.fromkeys(model, "decay")
        return model, build_optimizer(model, tiny_training(), kinds)

    model, optimizer = built()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    held = sharded.content(model, optimizer, TrainerState("tiny", 0, step=1))
    names = {"trainer": checkpoint.TRAINER, "manifest": checkpoint.MANIFEST}
    sharded.write(place, held, SaveGroup(), written=lambda: None, **names)
    found = checkpoint.verify(place / "step-1")
    del model, optimizer, held, parameter
    model, optimizer = built()
    before, peak, done = resident_bytes("RssAnon"), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            peak[0] = max(peak[0], resident_bytes("RssAnon") - before)

    watching = threading.Thread(target=watch)
    watching.start()
    checkpoint.restore(found, model, optimizer)
    done.set()
    watching.join()
    return peak[0]


@pytest.mark.parametrize("name", [SHARD, "trainer.json", "manifest.json"])
@pytest.mark.parametrize("damage", [truncate, empty, alter, remove])
def test_a_damaged_one_is_named_and_the_one_before_used(
    tmp_path: Path, name: str, damage: Any
) -> None:
    save(tmp_path, 10)
    damage(save(tmp_path, 20) / name)
    reports: list[str] = []
    found = checkpoint.latest_usable(tmp_path, reports.append)
    assert found is not None
    assert found.state.step == 10
    [report] = reports
    assert str(tmp_path / "step-20") in report
    if name != "manifest.json":
        assert f"step-20/{name}" in report


def test_a_newer_version_s_is_neither_passed_over_nor_deleted(tmp_path: Path) -> None:
    save(tmp_path, 3)
    newest = save(tmp_path, 6)
    trainer = newest / checkpoint.TRAINER
    trainer.write_text(json.dumps({**json.loads(trainer.read_text()), "curvature": 1.0}))
    seal_directory(newest, checkpoint.MANIFEST)
    for _ in range(2):
        with pytest.raises(InputError, match=r"step-6/\w+\.json: .*newer version.*'curvature'"):
            checkpoint.latest_usable(tmp_path, pytest.fail)
    assert sorted(step.name for step in tmp_path.iterdir()) == ["step-3", "step-6"]


def test_it_is_complete_before_older_ones_may_go(tmp_path: Path) -> None:
    seen: list[bool] = []
    path = tmp_path / "step-3"
    save(tmp_path, 3, written=lambda: seen.append(checkpoint.verify(path).state.step == 3))
    assert seen == [True]


def test_another_models_is_refused(tmp_path: Path) -> None:
    found = checkpoint.verify(save(tmp_path, 10))
    model, optimizer = trained()
    model.extra = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(CheckpointError, match="step-10 belongs to another model: extra is in one"):
        checkpoint.restore(found, model, optimizer)
    model, optimizer = trained()
    model.w0 = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(CheckpointError, match=r"w0 is float32 \[8\], the model's is float32 \[3\]"):
        checkpoint.restore(found, model, optimizer)
