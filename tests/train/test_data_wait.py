"""Batches are made while the step runs; what is saved and reported is about those taken."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.tiny import CountingData, TinyModel, Watcher, tiny_job, tiny_training
from wuneng.data.batch import Batch
from wuneng.data.prefetch import Prefetched
from wuneng.errors import DataError
from wuneng.records import read_json, read_jsonl
from wuneng.train import checkpoint
from wuneng.train.loop import ArmTraining
from wuneng.train.record_check import record_problem
from wuneng.train.signals import StopSignals


@dataclass
class Slow(CountingData):
    """Takes ``seconds`` for a batch, and cannot make that numbered ``broken``."""

    seconds: float = 0.0
    broken: int = 0

    def next_batch(self) -> Batch:
        time.sleep(self.seconds)
        if self.step + 1 == self.broken:
            raise DataError("data.train: gone")
        return super().next_batch()


def test_batches_are_made_ahead_and_the_state_is_of_those_taken() -> None:
    data, plain = CountingData(), CountingData()
    with Prefetched(data, 5) as batches:
        for taken in range(5):
            assert batches.state_dict() == {"step": taken}
            expected, found = plain.next_batch(), batches.next_batch()
            assert torch.equal(found.input_ids, expected.input_ids)
            made = min(5, taken + 3)
            _until(lambda made=made: data.step == made)
        with pytest.raises(IndexError):
            batches.next_batch()
    assert data.seen == [1, 2, 3, 4, 5]
    assert batches.state_dict() == {"step": 5}


def test_a_batch_that_cannot_be_made_is_told_when_its_turn_comes() -> None:
    with Prefetched(Slow(broken=3), 9) as batches:
        for _ in range(2):
            batches.next_batch()
        with pytest.raises(DataError, match="gone"):
            batches.next_batch()
        assert batches.state_dict() == {"step": 2}
    assert not [t for t in threading.enumerate() if t.name.startswith("batches")]


def test_the_share_of_time_waited_is_in_metrics_and_result(tmp_path: Path) -> None:
    """Batches that take long are waited for; those that are there at once are not."""

    class Steady(TinyModel):
        def forward(self, *arguments: Any, **named: Any) -> Any:
            time.sleep(0.05)
            return super().forward(*arguments, **named)

    shares = []
    for seconds in (0.4, 0.0):
        settings = tiny_training(steps=4, log_every=2, warmup_steps=1, validate_every=0)
        place = tmp_path / str(seconds)
        job = tiny_job(place, settings, model=Steady(), train=Slow(seconds=seconds))
        watcher = Watcher()
        with StopSignals() as stop:
            state = ArmTraining(job, watcher, stop).run()
        rows = read_jsonl(job.directory.metrics)
        assert all(0 <= row["data_wait"] <= 1 for row in rows)
        assert f"{state.data_wait:.1%} of its steps' time was waited for data" in watcher.notes[-1]
        shares.append((state.data_wait, rows[-1]["data_wait"]))
    assert all(slow > 0.5 > quick for slow, quick in zip(*shares, strict=True))


def test_a_checkpoint_from_before_the_share_was_counted(tmp_path: Path) -> None:
    job = tiny_job(tmp_path)
    with StopSignals() as stop:
        ArmTraining(job, Watcher(), stop).run()
    values = read_json(job.directory.checkpoints / "step-12" / "trainer.json")
    assert values.pop("waited_seconds") >= 0
    assert checkpoint.TrainerState.from_json(values).waited_seconds == 0
    assert record_problem({"data_wait": -1.0}) != ""


def _until(done: Callable[[], bool]) -> None:
    for _ in range(2000):
        if done():
            return
        time.sleep(0.001)
    raise AssertionError("it did not happen")
