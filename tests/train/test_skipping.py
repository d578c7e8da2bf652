"""Batches that are not finite, or spikes: skipped, recorded, counted, the same after a resume."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.small_run import train as train_recipe
from tests.train.test_loop import rows, train, weights
from tests.train.tiny import CountingData, TinyModel, Watcher, tiny_job, tiny_training
from wuneng.data.batch import Batch
from wuneng.errors import NonFiniteError
from wuneng.recipe import Spikes
from wuneng.records import read_jsonl
from wuneng.train import arm_run
from wuneng.train.arm_job import ArmJob
from wuneng.train.display import Progress
from wuneng.train.optimizer import build_optimizer, named_state
from wuneng.train.signals import Interrupted
from wuneng.train.skipping import Skipping
from wuneng.train.step import Numerics, take_step
from wuneng.train.training_notes import training_notes

BAD = -1
"""An input id that stands for a batch that blows up."""


class Fragile(TinyModel):
    """Multiplies the logits of a batch with a bad token by ``factor``."""

    factor = float("nan")

    def forward(self, input_ids: torch.Tensor, *rest: Any, **named: Any) -> Any:
        out = super().forward(input_ids.clamp_min(0), *rest, **named)
        if bool((input_ids == BAD).any()):
            out.logits = out.logits * self.factor
        return out


class Poisoned(CountingData):
    """Batches 5, 6 and 9 hold a token that ``Fragile`` cannot bear."""

    steps = frozenset({5, 6, 9})

    def next_batch(self) -> Batch:
        batch = super().next_batch()
        if self.step in self.steps:
            batch.input_ids[0, 0] = BAD
        return batch


def fragile_job(place: Path, **changes: Any) -> ArmJob:
    settings = {"non_finite": "skip", "log_every": 4, **changes}
    torch.manual_seed(0)
    model = Fragile()
    return tiny_job(place, tiny_training(**settings), train=Poisoned(), model=model)


def test_by_default_the_run_stops(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="step 5, arm 'tiny': the loss is nan"):
        train(fragile_job(tmp_path, non_finite="stop"))


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_skipped_batch_moves_nothing(where: str) -> None:
    torch.manual_seed(0)
    model, training = TinyModel(), tiny_training(non_finite="skip")
    optimizer = build_optimizer(model, training)
    numerics, data = Numerics(torch.device("cpu")), CountingData()
    take_step(model, optimizer, data.next_batch(), training, numerics, step=1, arm="t")
    if where == "loss":
        model.scale.fill_(float("inf"))
    else:
        model.mix.bias.register_hook(lambda gradient: gradient * float("nan"))

    def everything() -> dict[str, torch.Tensor]:
        moments = named_state(model, optimizer)
        return {n: t.clone() for n, t in [*model.named_parameters(), *moments.items()]}

    before = everything()
    outcome = take_step(model, optimizer, data.next_batch(), training, numerics, step=2, arm="t")
    assert outcome.skipped
    assert ("the loss is" if where == "loss" else "the gradient of") in outcome.reason
    after = everything()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_skipped_batches_are_recorded_counted_and_told(tmp_path: Path) -> None:
    watcher, job = Watcher(), fragile_job(tmp_path)
    story = train(job, watcher)
    lines = {row["step"]: row for row in read_jsonl(job.directory.metrics)}
    assert [step for step, row in lines.items() if row.get("skipped")] == [5, 6, 9]
    assert lines[5]["loss"] is None
    assert lines[5]["skipped_because"] == "the loss is nan"
    assert "skipped" not in lines[8]
    assert story.state.skipping["batches"] == 3
    assert [p.skipped_batches for p in watcher.steps] == [0] * 4 + [1, 2, 2, 2, 3, 3, 3, 3]
    assert all(bool(torch.isfinite(p).all()) for p in job.model.parameters())


@pytest.mark.parametrize("last_step", [5, 6, 7, 9])
def test_a_run_resumed_among_skipped_batches_is_the_same(tmp_path: Path, last_step: int) -> None:
    whole = fragile_job(tmp_path / "whole", spikes=Spikes(window=4))
    train(whole)

    def at_step(progress: Progress) -> None:
        if progress.step == last_step:
            signal.raise_signal(signal.SIGTERM)

    changes: dict[str, Any] = {"spikes": Spikes(window=4)}
    with pytest.raises(Interrupted):
        train(fragile_job(tmp_path / "cut", **changes), Watcher(at_step))
    again = fragile_job(tmp_path / "cut", **changes)
    story = train(again)
    assert rows(again) == rows(whole)
    assert weights(again) == weights(whole)
    assert story.state.skipping["batches"] == 3


def test_too_many_in_a_row_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"step 6, .*batch 2 in a row.*training\.skip_limit"):
        train(fragile_job(tmp_path / "two", skip_limit=2))
    train(fragile_job(tmp_path / "three", skip_limit=3))  # 5 and 6 are in a row, 9 is not


def test_the_limit_counts_across_a_resume(tmp_path: Path) -> None:
    def at_step(progress: Progress) -> None:
        if progress.step == 5:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(fragile_job(tmp_path, skip_limit=2), Watcher(at_step))
    with pytest.raises(NonFiniteError, match="batch 2 in a row"):
        train(fragile_job(tmp_path, skip_limit=2))


def judged(values: list[tuple[float, float]], **settings: Any) -> list[str]:
    skipping = Skipping(tiny_training(**settings))
    return [skipping.judge(loss, norm).reason for loss, norm in values]


@pytest.mark.parametrize(("spike", "name"), [((9.0, 1.0), "loss"), ((2.0, 80.0), "gradient norm")])
def test_a_spike_is_told_from_what_is_usual(spike: tuple[float, float], name: str) -> None:
    usual = [(2.0 + 0.1 * (n % 3), 1.0 + 0.05 * (n % 2)) for n in range(8)]
    found = judged([*usual, spike, *usual], spikes=Spikes(window=8))
    assert [n for n, reason in enumerate(found) if reason] == [8]
    assert found[8].startswith(f"the {name} is {spike[0] if name == 'loss' else spike[1]:.4g}, ")
    assert "standard deviations above its recent mean" in found[8]
    assert not any(judged([*usual, spike, *usual]))
    # Before half the window is known, nothing is unusual.
    assert not any(judged([*usual[:3], spike], spikes=Spikes(window=8)))


def test_a_spike_in_a_run_is_skipped(tmp_path: Path) -> None:
    job = fragile_job(tmp_path, spikes=Spikes(window=4))
    job.model.factor = 1e4
    train(job)
    told = [row for row in read_jsonl(job.directory.metrics) if row.get("skipped")]
    assert told[0]["step"] == 5
    assert "standard deviations" in told[0]["skipped_because"]
    assert told[0]["loss"] > 100


def test_float16s_scaler_goes_on_after_a_skipped_batch() -> None:
    model, training = TinyModel(), tiny_training(non_finite="skip")
    optimizer = build_optimizer(model, training)
    numerics = Numerics(torch.device("cpu"), None, torch.amp.GradScaler("cpu", init_scale=1024.0))
    data = CountingData()
    model.scale.fill_(float("nan"))
    take_step(model, optimizer, data.next_batch(), training, numerics, step=1, arm="t")
    model.scale.fill_(1.0)
    outcome = take_step(model, optimizer, data.next_batch(), training, numerics, step=2, arm="t")
    assert not outcome.skipped
    assert numerics.scaler is not None
    assert numerics.scaler.get_scale() == 512.0


def test_the_end_of_a_run_tells_how_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last line's loss is none, which no mean over seeds takes."""
    judge = Skipping.judge

    def every_third(self: Skipping, loss: float, norm: float, problem: str = "") -> Any:
        third = self.memory.setdefault("judged", 0) % 3 == 2
        self.memory["judged"] += 1
        return judge(self, float("nan") if third else loss, norm, "so" if third else problem)

    monkeypatch.setattr(Skipping, "judge", every_third)
    found, _ = train_recipe(tmp_path, "training.non_finite=skip", "seed=[0, 1]")
    assert found.record["arms"]["mha"]["skipped_batches"] == 4
    assert "wuneng 4 of 12, mha 4 of 12." in found.sentence


def test_nothing_is_told_where_nothing_was_skipped() -> None:
    assert training_notes({"arms": {"mha": {"steps": 3, "skipped_batches": 0}}}) == ""


def test_the_loss_that_a_record_ends_with_is_one() -> None:
    lines = [{"loss": 2.0}, {"loss": 1.5}, {"loss": None, "skipped": True}]
    assert arm_run.final_loss(lines) == 1.5
    assert arm_run.final_loss([{"loss": None}]) is None
