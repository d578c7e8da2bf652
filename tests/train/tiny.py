"""A model, data and an arm's job small enough that a step takes a millisecond."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from wuneng.data.batch import Batch
from wuneng.recipe import Training
from wuneng.records import ArmDirectory
from wuneng.train.arm_job import ArmJob
from wuneng.train.display import Progress
from wuneng.train.step import Numerics
from wuneng.train.trainer_state import seed_everything

VOCAB, WIDTH, LENGTH = 11, 8, 6
#: Of rows of metrics.jsonl: what depends on the machine and the clock, not on the computation.
UNTIMED = ("tokens_per_second", "data_wait", "seconds", "peak_memory_bytes", "mfu")


class TinyModel(nn.Module):
    """An embedding, a matrix, dropout (so that the generators' states matter) and logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        self.head.weight = self.embed.weight
        self.w0 = nn.Parameter(torch.zeros(WIDTH))
        self.register_buffer("scale", torch.ones(()))

    def forward(
        self, input_ids: Tensor, document_ids: Tensor | None = None, use_cache: bool = False
    ) -> Any:
        hidden = self.embed(input_ids) * torch.sigmoid(self.w0) * self.scale
        return SimpleNamespace(logits=self.head(self.dropout(torch.tanh(self.mix(hidden)))))


@dataclass
class CountingData:
    """Predict the next token of a modular count; batch n depends on the seed and n alone."""

    seed: int = 0
    rows: int = 4
    step: int = 0
    vocab_size: int = VOCAB
    seen: list[int] = field(default_factory=list)

    def next_batch(self) -> Batch:
        self.step += 1
        self.seen.append(self.step)
        return counting_batch(self.seed * 1000 + self.step, self.rows)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]


@dataclass
class FixedBatches:
    """The same two batches at every pass."""

    task: str = "count"

    def batches(self) -> Iterator[Batch]:
        yield counting_batch(1, 4, self.task)
        yield counting_batch(2, 4, self.task)


def counting_batch(seed: int, rows: int, task: str = "count") -> Batch:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(0, VOCAB, (rows, 1), generator=generator)
    tokens = (start + torch.arange(LENGTH + 1)) % VOCAB
    labels = tokens[:, 1:].clone()
    # Rows score different numbers of positions, as documents of different lengths do.
    for row in range(rows):
        labels[row, : row % LENGTH] = -100
    return Batch(tokens[:, :-1], labels, None, task, LENGTH)


def tiny_training(**changes: Any) -> Training:
    values: dict[str, Any] = {
        "steps": 12,
        "sequence_length": LENGTH,
        "batch_size": 4,
        "learning_rate": 0.01,
        "warmup_steps": 3,
        "log_every": 1,
        "validate_every": 4,
        "checkpoint_every": 3,
    }
    return Training(**{**values, **changes})


def tiny_job(place: Path, training: Training | None = None, **changes: Any) -> ArmJob:
    """A job whose weights come from its seed; ``changes`` replace fields of the job."""
    seed_everything(changes.get("seed", 0))
    values: dict[str, Any] = {
        "arm": "tiny",
        "seed": 0,
        "model": TinyModel(),
        "training": training or tiny_training(),
        "train": CountingData(),
        "validation": FixedBatches(),
        "data_description": "a modular count",
        "directory": ArmDirectory(place),
        "numerics": Numerics(torch.device("cpu")),
    }
    return ArmJob(**{**values, **changes})


@dataclass
class Watcher:
    """A display that remembers; ``at_step`` is called after each step."""

    at_step: Any = None
    steps: list[Progress] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    readings: list[tuple[str, float]] = field(default_factory=list)
    running: list[tuple[tuple[str, ...], int, int]] = field(default_factory=list)

    def stepped(self, progress: Progress) -> None:
        self.steps.append(progress)
        if self.at_step is not None:
            self.at_step(progress)

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def side_by_side(self, running: Sequence[str], done: int, units: int) -> None:
        self.running.append((tuple(running), done, units))

    def reading(self, what: str, share: float) -> None:
        self.readings.append((what, share))

    def close(self) -> None:
        pass


def fill(file: Path) -> None:
    """Write until the disk refuses."""
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as stream:
        while True:
            stream.write(b"\0" * 4096)
