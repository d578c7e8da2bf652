"""Which checkpoints stay, and checkpoints that are written while training goes on."""

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.small_run import train as train_recipe
from tests.train.test_loop import rows, train, weights
from tests.train.tiny import Watcher, counting_batch, fill, tiny_job, tiny_training
from wuneng.data.batch import Batch
from wuneng.errors import DiskError, NonFiniteError, RecipeError
from wuneng.records import atomic
from wuneng.train import checkpoint, saving
from wuneng.train.arm_job import ArmJob
from wuneng.train.display import Progress
from wuneng.train.signals import Interrupted

ASIDE = {"async_checkpoints": True}


def kept(job: ArmJob) -> list[int]:
    found = job.directory.checkpoints.glob("step-*")
    return sorted(int(path.name.removeprefix("step-")) for path in found)


class Worsening:
    """Validation that is best at its second pass: the labels drift away from what is trained."""

    def __init__(self) -> None:
        self.passes = 0

    def batches(self) -> Iterator[Batch]:
        self.passes += 1
        batch = counting_batch(1, 4)
        wrong = torch.where(batch.labels == -100, batch.labels, (batch.labels + 5) % 11)
        yield batch if self.passes == 2 else Batch(batch.input_ids, wrong, None, "count", 6)


def test_the_best_checkpoint_stays(tmp_path: Path) -> None:
    settings = {"validate_every": 2, "checkpoint_every": 0, "keep_checkpoints": 1}
    job = tiny_job(tmp_path, tiny_training(keep_best=True, **settings), validation=Worsening())
    state = train(job).state
    assert state.best["step"] == 4
    assert kept(job) == [4, 12]
    assert checkpoint.verify(job.directory.checkpoints / "step-4").state.step == 4
    without = tiny_job(tmp_path / "without", tiny_training(**settings), validation=Worsening())
    train(without)
    assert kept(without) == [12]


def test_a_resumed_run_keeps_the_best_from_before(tmp_path: Path) -> None:
    settings = {"validate_every": 2, "keep_checkpoints": 1, "keep_best": True}

    def at_step(progress: Progress) -> None:
        if progress.step == 7:
            signal.raise_signal(signal.SIGTERM)

    job = tiny_job(tmp_path, tiny_training(**settings), validation=Worsening())
    with pytest.raises(Interrupted):
        train(job, Watcher(at_step))
    assert kept(job) == [4, 7]
    later = Worsening()
    later.passes = 3
    again = tiny_job(tmp_path, tiny_training(**settings), validation=later)
    train(again)
    assert kept(again) == [4, 12]


def test_every_nth_checkpoint_stays(tmp_path: Path) -> None:
    settings = {"checkpoint_every": 2, "keep_every": 5, "keep_checkpoints": 1}
    job = tiny_job(tmp_path, tiny_training(**settings))
    train(job)
    assert kept(job) == [5, 10, 12]


def test_the_best_is_told_by_name(tmp_path: Path) -> None:
    found, _ = train_recipe(tmp_path, "training.keep_best=true")
    [best] = found.record["arms"]["wuneng"]["best_checkpoints"]
    assert (found.directory / best["directory"] / "manifest.json").is_file()
    assert best["step"] in (3, 6)
    assert f"Checkpoints of the best validation: {best['directory']} (" in found.sentence


def test_the_best_needs_a_validation(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"training\.keep_best: expected validate_every"):
        train_recipe(tmp_path, "training.keep_best=true", "training.validate_every=0")


def test_checkpoints_written_aside_are_the_same(tmp_path: Path) -> None:
    jobs = []
    for name, changes in (("at once", {}), ("aside", ASIDE)):
        job = tiny_job(tmp_path / name, tiny_training(keep_checkpoints=9, **changes))
        train(job)
        jobs.append(job)
    assert weights(jobs[0]) == weights(jobs[1])
    assert kept(jobs[0]) == kept(jobs[1]) == [3, 6, 9, 12]
    for step in kept(jobs[0]):
        for name in ("model.safetensors", "optimizer.safetensors"):
            one, two = (job.directory.checkpoints / f"step-{step}" / name for job in jobs)
            assert one.read_bytes() == two.read_bytes()


def test_training_goes_on_while_a_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint of step 3 is finished only when the run has come to step 5: were training to
    wait for it, neither would ever be."""
    reached, write = threading.Event(), checkpoint.write

    def slow(place: Path, content: checkpoint.Content) -> Path:
        if content.step == 3:
            assert reached.wait(30)
        return write(place, content)

    def at_step(progress: Progress) -> None:
        if progress.step == 5:
            assert kept(job) == []
            reached.set()

    monkeypatch.setattr(saving.checkpoint, "write", slow)
    job = tiny_job(tmp_path / "aside", tiny_training(keep_checkpoints=9, **ASIDE))
    story = train(job, Watcher(at_step))
    assert kept(job) == [3, 6, 9, 12]
    undisturbed = tiny_job(tmp_path / "undisturbed", tiny_training(keep_checkpoints=9))
    monkeypatch.undo()
    train(undisturbed)
    one, two = (
        j.directory.checkpoints / "step-3" / "model.safetensors" for j in (job, undisturbed)
    )
    assert one.read_bytes() == two.read_bytes()
    assert story._saver.waited < 20


def test_an_update_waits_until_the_tensors_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = checkpoint.Content.copied

    def slow(self: checkpoint.Content) -> checkpoint.Content:
        time.sleep(0.3)  # some steps' time
        return copied(self)

    undisturbed = tiny_job(tmp_path / "undisturbed", tiny_training(keep_checkpoints=9))
    train(undisturbed)
    monkeypatch.setattr(checkpoint.Content, "copied", slow)
    job = tiny_job(tmp_path / "aside", tiny_training(keep_checkpoints=9, **ASIDE))
    train(job)
    for step in (3, 6, 9, 12):
        one, two = (j.directory.checkpoints / f"step-{step}" for j in (job, undisturbed))
        for name in ("model.safetensors", "optimizer.safetensors"):
            assert (one / name).read_bytes() == (two / name).read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_what_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    write = checkpoint.write

    def slow(place: Path, content: checkpoint.Content) -> Path:
        time.sleep(0.2)
        return write(place, content)

    monkeypatch.setattr(saving.checkpoint, "write", slow)

    def at_step(progress: Progress) -> None:
        if progress.step == 4:
            signal.raise_signal(number)

    job = tiny_job(tmp_path / "stopped", tiny_training(**ASIDE))
    with pytest.raises(Interrupted, match="saved at step 4 of 12"):
        train(job, Watcher(at_step))
    assert kept(job) == [3, 4]
    again = tiny_job(tmp_path / "stopped", tiny_training(**ASIDE))
    train(again)
    undisturbed = tiny_job(tmp_path / "undisturbed")
    train(undisturbed)
    assert rows(again) == rows(undisturbed)
    assert weights(again) == weights(undisturbed)


def test_a_disk_that_fills_up_aside_is_told_and_nothing_is_lost(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "check_free_space", lambda *arguments: None)

    def at_step(progress: Progress) -> None:
        if progress.step == 5:
            fill(small_disk / "ballast")

    job = tiny_job(small_disk / "arm", tiny_training(validate_every=0, log_every=100, **ASIDE))
    with pytest.raises(DiskError, match="step-6: the disk is full"):
        train(job, Watcher(at_step))
    assert kept(job) == [3]
    assert not list(job.directory.checkpoints.glob(".partial-*"))
    (small_disk / "ballast").unlink()
    again, watcher = tiny_job(job.directory.path, job.training), Watcher()
    train(again, watcher)
    assert "continuing after step 3" in watcher.notes[0]
    assert kept(again) == [9, 12]


def test_a_failure_waits_for_what_is_being_written(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, tiny_training(**ASIDE))

    def at_step(progress: Progress) -> None:
        if progress.step == 6:
            job.model.scale.fill_(float("nan"))

    with pytest.raises(NonFiniteError):
        train(job, Watcher(at_step))
    assert checkpoint.verify(job.directory.checkpoints / "step-6").state.step == 6


def test_both_failures_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(place: Path, content: checkpoint.Content) -> Any:
        time.sleep(0.2)
        raise DiskError("the disk is full")

    monkeypatch.setattr(saving.checkpoint, "write", full)
    job = tiny_job(tmp_path, tiny_training(**ASIDE))

    def at_step(progress: Progress) -> None:
        if progress.step == 3:
            job.model.scale.fill_(float("nan"))

    watcher = Watcher(at_step)
    with pytest.raises(NonFiniteError):
        train(job, watcher)
    assert watcher.warnings == ["the disk is full"]
