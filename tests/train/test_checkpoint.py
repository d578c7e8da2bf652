"""Every way a checkpoint can be damaged, a full disk, rotation, and leftovers of killed writes."""

import errno
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.damage import alter, empty, truncate
from tests.train.tiny import TinyModel, Watcher, counting_batch, fill, tiny_job, tiny_training
from wuneng.errors import CheckpointError, DiskError, InputError
from wuneng.records import atomic
from wuneng.records.checksums import seal_directory
from wuneng.train import checkpoint
from wuneng.train.loop import ArmTraining
from wuneng.train.optimizer import build_optimizer, named_state
from wuneng.train.signals import StopSignals
from wuneng.train.step import Numerics, take_step
from wuneng.train.trainer_state import TrainerState, capture_rng, restore_rng

FILES = ["model.safetensors", "optimizer.safetensors", "trainer.json", "manifest.json"]


def trained(seed: int = 0) -> tuple[TinyModel, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = TinyModel()
    training = tiny_training()
    optimizer = build_optimizer(model, training)
    batch = counting_batch(seed, 4)
    take_step(model, optimizer, batch, training, Numerics(torch.device("cpu")), step=1, arm="tiny")
    return model, optimizer


def save(parent: Path, step: int, seed: int = 0, keep: int = 5) -> Path:
    model, optimizer = trained(seed)
    state = TrainerState("tiny", seed, step=step, rng=capture_rng())
    return checkpoint.save(parent, model, optimizer, state, keep=keep)


def steps(parent: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in parent.glob("step-*"))


def test_restore_puts_back_every_bit(tmp_path: Path) -> None:
    model, optimizer = trained(seed=1)
    state = TrainerState("tiny", 1, step=4, tokens=96, data={"step": 4}, rng=capture_rng())
    checkpoint.save(tmp_path, model, optimizer, state, keep=2)
    expected = torch.rand(3)

    found = checkpoint.latest_usable(tmp_path, pytest.fail)
    assert found is not None
    assert found.state == state
    other, other_optimizer = trained(seed=2)
    checkpoint.restore(found, other, other_optimizer)
    restore_rng(found.state.rng)
    assert torch.equal(torch.rand(3), expected)
    for (name, one), (_, two) in zip(
        model.state_dict().items(), other.state_dict().items(), strict=True
    ):
        assert torch.equal(one, two), name
    one, two = named_state(model, optimizer), named_state(other, other_optimizer)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def remove(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [truncate, empty, alter, remove])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(
    tmp_path: Path, name: str, damage: Any
) -> None:
    save(tmp_path, 10)
    damage(save(tmp_path, 20) / name)
    reports: list[str] = []
    found = checkpoint.latest_usable(tmp_path, reports.append)
    assert found is not None
    assert found.state.step == 10
    [report] = reports
    assert "\n" not in report
    # A byte of the manifest may hold the checksum of any file.
    assert str(tmp_path / "step-20") in report
    if name != "manifest.json":
        assert f"step-20/{name}" in report


@pytest.mark.parametrize("known", [True, False], ids=["a field", "a file"])
def test_a_newer_versions_checkpoint_is_neither_passed_over_nor_deleted(
    tmp_path: Path, known: bool
) -> None:
    place = tmp_path / "checkpoints"
    save(place, 3)
    newest = save(place, 6)
    trainer = json.loads((newest / "trainer.json").read_text())
    name = "trainer.json" if known else "curvature"
    (newest / name).write_text(json.dumps({**trainer, "curvature": 1.0}))
    seal_directory(newest, "manifest.json")
    for resume in (
        lambda: checkpoint.latest_usable(place, pytest.fail),
        lambda: ArmTraining(tiny_job(tmp_path), Watcher(), StopSignals()).run(),
    ):
        with pytest.raises(InputError, match=r"step-6/\w+\.json: .*newer version.*'curvature'"):
            resume()
    assert steps(place) == [3, 6]


def test_every_checkpoint_damaged_leaves_none(tmp_path: Path) -> None:
    truncate(save(tmp_path, 10) / "model.safetensors")
    remove(save(tmp_path, 20) / "manifest.json")
    reports: list[str] = []
    assert checkpoint.latest_usable(tmp_path, reports.append) is None
    assert len(reports) == 2


def test_no_checkpoint_is_no_news(tmp_path: Path) -> None:
    assert checkpoint.latest_usable(tmp_path / "absent", pytest.fail) is None


def test_rotation_keeps_the_newest(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20):
        save(tmp_path, step, keep=2)
    assert steps(tmp_path) == [15, 20]


def test_damaged_later_checkpoints_do_not_push_out_good_ones(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(tmp_path, step)
    save(tmp_path, 15, keep=2)
    assert steps(tmp_path) == [10, 15]


def test_a_step_saved_again_replaces_the_damaged_one(tmp_path: Path) -> None:
    truncate(save(tmp_path, 10) / "model.safetensors")
    save(tmp_path, 10)
    assert checkpoint.verify(tmp_path / "step-10").state.step == 10
    assert [path.name for path in tmp_path.iterdir()] == ["step-10"]


@pytest.mark.parametrize("moment", ["save_file", "flush_tree"])
def test_an_interrupted_write_leaves_the_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    save(tmp_path, 10)

    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    target = (checkpoint, "save_file") if moment == "save_file" else (atomic, "flush_tree")
    target = target if hasattr(*target) else (atomic, "flush")
    monkeypatch.setattr(*target, interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 20, keep=1)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step-10"]
    assert checkpoint.verify(tmp_path / "step-10").state.step == 10


def test_leftovers_of_a_killed_write_are_removed(tmp_path: Path) -> None:
    save(tmp_path, 10)
    (tmp_path / ".partial-step-20").mkdir()
    (tmp_path / ".partial-step-20" / "model.safetensors").write_bytes(b"half")
    reports: list[str] = []
    found = checkpoint.latest_usable(tmp_path, reports.append)
    assert found is not None
    assert [path.name for path in tmp_path.iterdir()] == ["step-10"]
    assert ".partial-step-20" in reports[0]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    save(tmp_path, 10)
    (tmp_path / "step-10").rename(tmp_path / ".partial-replaced-step-10")
    found = checkpoint.latest_usable(tmp_path, pytest.fail)
    assert found is not None
    assert found.state.step == 10


def test_another_models_checkpoint_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 10)
    found = checkpoint.verify(tmp_path / "step-10")
    model, optimizer = trained()
    model.extra = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(CheckpointError, match="extra is in one only"):
        checkpoint.restore(found, model, optimizer)
    model, optimizer = trained()
    model.w0 = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(CheckpointError, match=r"w0 is float32 \[8\], the model's is float32 \[3\]"):
        checkpoint.restore(found, model, optimizer)


def test_no_file_of_a_checkpoint_is_a_pickle(tmp_path: Path) -> None:
    path = save(tmp_path, 10)
    assert sorted(file.name for file in path.iterdir()) == sorted(FILES)
    for file in path.iterdir():
        start = file.read_bytes()[:2]
        assert not start.startswith(b"\x80")
        assert start != b"PK"
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["files"].keys() == set(FILES) - {"manifest.json"}


def test_too_little_space_is_noticed_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 10)
    usage = namedtuple("usage", "total used free")(10_000, 9_000, 1_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        DiskError, match=r"step-20: the disk is full \([\d,]+ bytes needed, 1,000 f"
    ):
        save(tmp_path, 20, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-10"]


def as_os_error() -> Exception:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def as_safetensors_error() -> Exception:
    from safetensors import SafetensorError

    return SafetensorError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("failure", [as_os_error, as_safetensors_error])
def test_a_disk_that_fills_while_writing_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Any
) -> None:
    save(tmp_path, 10)

    def full(*arguments: Any) -> None:
        raise failure()

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(DiskError, match=r"step-20: the disk is full") as caught:
        save(tmp_path, 20, keep=1)
    assert "bytes needed" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-10"]


@pytest.mark.parametrize("checked_first", [True, False])
def test_a_really_full_disk(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, checked_first: bool
) -> None:
    save(small_disk, 10)
    fill(small_disk / "ballast")
    if not checked_first:  # the disk fills up between the check and the write
        monkeypatch.setattr(atomic, "check_free_space", lambda *arguments: None)
    with pytest.raises(DiskError, match="the disk is full"):
        save(small_disk, 20, keep=1)
    assert steps(small_disk) == [10]
    assert checkpoint.verify(small_disk / "step-10").state.step == 10


def test_checkpoints_that_a_kill_kept_from_rotation_go_at_the_end(tmp_path: Path) -> None:
    """Killed after the last checkpoint, before the older ones were deleted."""
    job = tiny_job(tmp_path, tiny_training(keep_checkpoints=1))
    with StopSignals() as stop:
        ArmTraining(job, Watcher(), stop).run()
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(checkpoints / "step-12", checkpoints / "step-9")
    job = tiny_job(tmp_path, tiny_training(keep_checkpoints=1))
    with StopSignals() as stop:
        ArmTraining(job, Watcher(), stop).run()
    assert [path.name for path in checkpoints.iterdir()] == ["step-12"]
