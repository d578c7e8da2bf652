"""What is seen of a step beside its loss: gradients by part, half-lives, memory, the MFU."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model.small import small_model
from tests.train.test_loop import rows, train, weights
from tests.train.tiny import FixedBatches, TinyModel, tiny_job, tiny_training
from wuneng.distributed.processes import ALONE
from wuneng.inspect.quantities import half_life, in_context_rate
from wuneng.inspect.recording import record
from wuneng.records import read_jsonl
from wuneng.train import machine_figures, observing
from wuneng.train.machine_figures import peak_flops
from wuneng.train.observing import Observer
from wuneng.train.step import Numerics, StepOutcome

CPU = Numerics(torch.device("cpu"))


def model_job(place: Path, **changes: Any) -> Any:
    torch.manual_seed(0)
    return tiny_job(place, tiny_training(**changes), model=small_model())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("clip", [0.0, 1e-3, 100.0])
def test_the_parts_gradients_make_up_the_whole(tmp_path: Path, optimizer: str, clip: float) -> None:
    """Their squares add up to the square of the norm before clipping."""
    job = model_job(tmp_path, optimizer=optimizer, clip=clip, steps=4)
    train(job)
    for row in read_jsonl(job.directory.metrics):
        parts = row["grad_norms"]
        assert {"attention", "state_heads", "middle_heads", "feed-forward"} <= parts.keys()
        assert math.hypot(*parts.values()) == pytest.approx(row["grad_norm"], rel=1e-4)
        assert parts["attention"] > 0


def test_nothing_is_said_of_gradients_that_are_not_finite() -> None:
    observer = Observer(TinyModel(), tiny_training(), CPU, FixedBatches())
    assert observer.figures(2, StepOutcome(1.0, math.inf, 24, skipped=True)) == {}


def test_half_lives_and_rates_are_those_that_inspect_shows(tmp_path: Path) -> None:
    """Of the same text: the mean over heads; half-lives of channels lie between inspect's ends."""
    job = model_job(tmp_path)
    text = next(FixedBatches().batches()).input_ids[0]
    observer = Observer(job.model, job.training, CPU, FixedBatches())
    found = observer.figures(1, StepOutcome(1.0, 1.0, 24))
    layers = [layer for layer in record(job.model.eval(), text) if layer.inputs]
    assert list(found["half_life"]) == [f"layer_{layer.layer}" for layer in layers]
    for layer in layers:
        w, b = (layer.inputs[n] for n in (1, 5))
        rate = found["in_context_rate"][f"layer_{layer.layer}"]
        assert rate == pytest.approx(float(in_context_rate(b).mean()), rel=1e-4)
        ends = half_life(w)
        half = found["half_life"][f"layer_{layer.layer}"]
        assert float(ends.shortest.min()) < half < float(ends.longest.max())
        channels = (math.log(0.5) / w.mean(0)).abs()
        assert half == pytest.approx(float(channels.log().mean().exp()), rel=1e-4)


def test_state_heads_are_looked_at_now_and_then(tmp_path: Path) -> None:
    job = model_job(tmp_path, steps=61, log_every=7, validate_every=0, checkpoint_every=0)
    train(job)
    seen = [row["step"] for row in read_jsonl(job.directory.metrics) if "half_life" in row]
    assert seen == [1, 56]


def test_looking_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = model_job(tmp_path / "watched", steps=4)
    train(watched)
    assert watched.model.training
    monkeypatch.setattr(observing.Observer, "figures", lambda *arguments: {})
    blind = model_job(tmp_path / "blind", steps=4)
    train(blind)
    assert weights(blind) == weights(watched)
    assert "half_life" not in rows(blind)[0]
    assert "half_life" in rows(watched)[0]


def test_an_arm_without_state_heads_has_none_of_theirs(tmp_path: Path) -> None:
    job = tiny_job(tmp_path)
    train(job)
    assert not any("half_life" in row for row in read_jsonl(job.directory.metrics))


_SEES_WHAT_WAS_ALLOCATED = """
import torch
from wuneng.train.machine_figures import peak_memory, reset_peak
cpu = torch.device("cpu")
torch.ones(2**25)  # a peak of earlier times
reset_peak(cpu)
before = peak_memory(cpu)
held = torch.ones(2**24)
assert 0.9 * held.nbytes < peak_memory(cpu) - before < 1.5 * held.nbytes
"""


def test_peak_memory_sees_what_was_allocated_since_the_reset() -> None:
    """In a process of its own: what other tests have freed may be given out again."""
    subprocess.run([sys.executable, "-c", _SEES_WHAT_WAS_ALLOCATED], check=True)


def test_on_a_cpu_no_mfu_is_invented(tmp_path: Path) -> None:
    job = tiny_job(tmp_path, flops_per_token=1e9)
    train(job)
    [first, *_] = read_jsonl(job.directory.metrics)
    assert first["peak_memory_bytes"] > 2**20
    assert "mfu" not in first


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA B200", 2.25e15),
        ("NVIDIA GB200", 2.5e15),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_a_devices_peak_is_known_by_its_name(
    monkeypatch: pytest.MonkeyPatch, name: str, peak: float | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(machine_figures, "peak_memory", lambda device: None)
    cuda = torch.device("cuda")
    assert peak_flops(cuda, torch.bfloat16) == peak
    assert peak_flops(cuda, None) is None
    figures = machine_figures.machine_figures(ALONE, cuda, torch.bfloat16, 0.4 * (peak or 1.0))
    assert figures == ({} if peak is None else {"mfu": 0.4})
