"""One arm from start to end: what is recorded, and that stopping and resuming changes nothing."""

import errno
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.tiny import (
    UNTIMED,
    CountingData,
    TinyModel,
    Watcher,
    tiny_job,
    tiny_training,
)
from wuneng.errors import CheckpointError, DiskError, NonFiniteError, RunError
from wuneng.records import read_jsonl
from wuneng.train import checkpoint, loop, recording
from wuneng.train.arm_job import ArmJob
from wuneng.train.display import Progress
from wuneng.train.loop import ArmTraining
from wuneng.train.signals import Interrupted, StopSignals


def train(job: ArmJob, watcher: Watcher | None = None) -> ArmTraining:
    with StopSignals() as stop:
        story = ArmTraining(job, watcher or Watcher(), stop)
        story.run()
    return story


def rows(job: ArmJob) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in row.items() if key not in UNTIMED}
        for row in read_jsonl(job.directory.metrics)
    ]


def weights(job: ArmJob) -> dict[str, bytes]:
    return {n: t.numpy().tobytes() for n, t in checkpoint.model_tensors(job.model).items()}


@pytest.fixture
def undisturbed(tmp_path: Path) -> ArmJob:
    job = tiny_job(tmp_path / "undisturbed")
    train(job)
    return job


def test_metrics_name_every_step_with_its_figures(undisturbed: ArmJob) -> None:
    lines = read_jsonl(undisturbed.directory.metrics)
    assert [line["step"] for line in lines] == list(range(1, 13))
    first = {"arm", "step", "tokens", "loss", "lr", "grad_norm", "tokens_per_second", "seconds"}
    assert first <= lines[0].keys()
    assert [line["tokens"] for line in lines] == [24 * n for n in range(1, 13)]
    assert [line["step"] for line in lines if "validation" in line] == [4, 8, 12]
    figures = lines[3]["validation"]
    assert figures.keys() == {"count/accuracy@6", "count/loss"}
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_log_every_leaves_lines_out_but_not_the_ends(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, tiny_training(log_every=5, validate_every=0))
    train(job)
    assert [row["step"] for row in rows(job)] == [1, 5, 10, 12]


def test_checkpoints_are_written_on_the_way_and_at_the_end(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, tiny_training(steps=11, checkpoint_every=4, keep_checkpoints=3))
    train(job)
    names = {path.name for path in job.directory.checkpoints.iterdir()}
    assert names == {"step-4", "step-8", "step-11"}


def test_without_checkpoint_every_only_the_end_is_saved(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, tiny_training(checkpoint_every=0))
    train(job)
    assert [path.name for path in job.directory.checkpoints.iterdir()] == ["step-12"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_step_and_the_resumed_run_is_the_same(
    tmp_path: Path, undisturbed: ArmJob, number: signal.Signals
) -> None:
    def at_step(progress: Progress) -> None:
        if progress.step == 7:
            signal.raise_signal(number)

    job = tiny_job(tmp_path / "stopped")
    with pytest.raises(Interrupted, match="saved at step 7 of 12") as caught:
        train(job, Watcher(at_step))
    assert caught.value.exit_code == 128 + number
    assert (job.directory.checkpoints / "step-7").is_dir()

    again, watcher = tiny_job(tmp_path / "stopped"), Watcher()
    train(again, watcher)
    assert "continuing after step 7" in watcher.notes[0]
    assert again.train.seen == [8, 9, 10, 11, 12]
    assert rows(again) == rows(undisturbed)
    assert weights(again) == weights(undisturbed)


def test_a_second_interrupt_leaves_at_once(tmp_path: Path) -> None:
    def at_step(progress: Progress) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    job = tiny_job(tmp_path)
    with pytest.raises(Interrupted, match="at once"):
        train(job, Watcher(at_step))
    assert not list(job.directory.checkpoints.glob("*"))


def test_signal_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopSignals():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.parametrize("last_step", [1, 2, 3, 5, 6, 8, 11])
def test_an_abrupt_end_after_any_step_changes_nothing(
    tmp_path: Path, undisturbed: ArmJob, last_step: int
) -> None:
    class Killed(BaseException):
        pass

    def at_step(progress: Progress) -> None:
        if progress.step == last_step:
            raise Killed

    job = tiny_job(tmp_path / "killed")
    with pytest.raises(Killed):
        train(job, Watcher(at_step))
    job.directory.path.mkdir(exist_ok=True)
    with job.directory.metrics.open("a") as file:  # lines beyond the checkpoint, the last one torn
        file.write('{"step": 99, "loss": 1.0}\n{"step": 1')
    again = tiny_job(tmp_path / "killed")
    train(again)
    assert rows(again) == rows(undisturbed)
    assert weights(again) == weights(undisturbed)


def test_resuming_behind_a_damaged_checkpoint_changes_nothing(
    tmp_path: Path, undisturbed: ArmJob
) -> None:
    def at_step(progress: Progress) -> None:
        if progress.step == 8:
            signal.raise_signal(signal.SIGTERM)

    job = tiny_job(tmp_path / "damaged")
    with pytest.raises(Interrupted):
        train(job, Watcher(at_step))
    with (job.directory.checkpoints / "step-8" / "model.safetensors").open("r+b") as file:
        file.truncate(100)
    again, watcher = tiny_job(tmp_path / "damaged"), Watcher()
    train(again, watcher)
    assert "step-8/model.safetensors: 100 bytes" in watcher.warnings[0]
    assert "continuing after step 6" in watcher.notes[0]
    assert rows(again) == rows(undisturbed)
    assert weights(again) == weights(undisturbed)


def test_a_finished_arm_is_not_trained_again(undisturbed: ArmJob) -> None:
    again = tiny_job(undisturbed.directory.path)
    train(again)
    assert again.train.seen == []
    assert weights(again) == weights(undisturbed)


def test_wall_time_goes_on_counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock: Iterator[float] = iter(range(10_000))
    monkeypatch.setattr(loop.time, "perf_counter", lambda: float(next(clock)))

    def at_step(progress: Progress) -> None:
        if progress.step == 7:
            signal.raise_signal(signal.SIGTERM)

    job = tiny_job(tmp_path)
    with pytest.raises(Interrupted):
        train(job, Watcher(at_step))
    train(tiny_job(tmp_path))
    lines = read_jsonl(job.directory.metrics)
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)
    # A step takes 1 s on this clock and looking at it another: 2 s pass, 1 is the step's.
    state = checkpoint.verify(job.directory.checkpoints / "step-12").state
    assert state.timed_seconds == 12
    assert state.seconds >= 24
    assert {line["tokens_per_second"] for line in lines} == {24.0}


def test_changed_data_is_noticed(tmp_path: Path) -> None:
    train(tiny_job(tmp_path))
    with pytest.raises(CheckpointError, match="the training data has changed"):
        train(tiny_job(tmp_path, data_description="another count"))


def test_what_is_said_of_guessing_is_no_data(tmp_path: Path) -> None:
    """Descriptions that a version before wrote have less of it."""
    for more in ("", "; 0.34 by the value that occurs most"):
        train(tiny_job(tmp_path, data_description=f"recall of 4 pairs (chance 0.062{more})"))
    with pytest.raises(CheckpointError, match="the training data has changed"):
        train(tiny_job(tmp_path, data_description="recall of 5 pairs (chance 0.062)"))


def test_another_arms_checkpoint_is_refused(tmp_path: Path) -> None:
    train(tiny_job(tmp_path))
    with pytest.raises(CheckpointError, match="is of arm 'tiny', seed 0; expected arm 'mha'"):
        train(tiny_job(tmp_path, arm="mha"))


def test_a_full_disk_under_the_metrics_keeps_the_last_checkpoint(
    tmp_path: Path, undisturbed: ArmJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = recording.append_jsonl

    def full_at_step_8(path: Path, row: dict[str, Any]) -> None:
        if row["step"] == 8:
            raise DiskError(f"cannot write {path}: {errno.errorcode[errno.ENOSPC]}")
        append(path, row)

    monkeypatch.setattr(recording, "append_jsonl", full_at_step_8)
    job = tiny_job(tmp_path / "full")
    with pytest.raises(DiskError, match=r"metrics\.jsonl"):
        train(job)
    assert checkpoint.verify(job.directory.checkpoints / "step-6").state.step == 6
    monkeypatch.undo()
    again = tiny_job(tmp_path / "full")
    train(again)
    assert rows(again) == rows(undisturbed)
    assert weights(again) == weights(undisturbed)


def test_a_loss_that_blows_up_names_step_and_arm_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    job = tiny_job(tmp_path)

    def at_step(progress: Progress) -> None:
        if progress.step == 7:
            job.model.scale.fill_(float("nan"))

    with pytest.raises(NonFiniteError, match="step 8, arm 'tiny': the loss is nan"):
        train(job, Watcher(at_step))
    assert checkpoint.verify(job.directory.checkpoints / "step-6").state.step == 6
    assert [row["step"] for row in rows(job)] == list(range(1, 8))


def test_validation_changes_neither_weights_nor_mode(tmp_path: Path, undisturbed: ArmJob) -> None:
    job = tiny_job(tmp_path / "without", tiny_training(validate_every=0))
    train(job)
    assert weights(job) == weights(undisturbed)
    assert job.model.training


def test_every_arm_sees_the_same_batches(tmp_path: Path) -> None:
    """Arms differ in what they draw from the generators; their data must not notice."""

    class Recording(CountingData):
        def next_batch(self):
            batch = super().next_batch()
            taken.append(batch.input_ids)
            return batch

    class Thirsty(TinyModel):
        def forward(self, *arguments: Any, **named: Any) -> Any:
            torch.rand(100)
            return super().forward(*arguments, **named)

    orders = []
    for model in (TinyModel(), Thirsty()):
        taken: list[torch.Tensor] = []
        train(tiny_job(tmp_path / type(model).__name__, model=model, train=Recording()))
        orders.append(taken)
    assert len(orders[0]) == 12
    assert all(torch.equal(one, two) for one, two in zip(*orders, strict=True))


def test_best_validation_is_remembered(undisturbed: ArmJob) -> None:
    text = (undisturbed.directory.checkpoints / "step-12" / "trainer.json").read_text()
    state = json.loads(text)
    losses = {entry["step"]: entry["count/loss"] for entry in state["validation"]}
    best = min(losses, key=losses.__getitem__)
    assert state["best"] == {"step": best, "name": "count/loss", "value": losses[best]}


def test_compiling_counts_as_time_but_not_as_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def eager(forward: Callable[..., Any]) -> Callable[..., Any]:
        """In the place of torch.compile, which validation does without."""

        def called(*arguments: Any, **named: Any) -> Any:
            assert torch.is_grad_enabled()
            calls.append(1)
            return forward(*arguments, **named)

        compiled.append(forward)
        return called

    compiled: list[Callable[..., Any]] = []
    calls: list[int] = []
    monkeypatch.setattr(torch, "compile", eager)
    job = tiny_job(tmp_path, tiny_training(compile=True))
    state = train(job).state
    assert (len(compiled), len(calls)) == (1, 12)
    assert state.tokens == 12 * 24
    assert state.timed_tokens == 11 * 24


def test_a_missing_compiler_is_said_in_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor.exc import InvalidCxxCompiler

    def failing(*arguments: Any, **named: Any) -> None:
        raise InvalidCxxCompiler

    monkeypatch.setattr(loop, "take_step", failing)
    with pytest.raises(RunError, match=r"training\.compile: .*C\+\+ compiler"):
        train(tiny_job(tmp_path))


def test_other_errors_pass_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*arguments: Any, **named: Any) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(loop, "take_step", failing)
    with pytest.raises(ValueError, match="a bug"):
        train(tiny_job(tmp_path))
