"""What an arm's training remembers besides tensors, and the random generators' states."""

from __future__ import annotations

import base64
import random
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch

from wuneng.errors import CheckpointError, InputError

__all__ = [
    "TrainerState",
    "capture_rng",
    "draw_apart",
    "newer_version",
    "restore_rng",
    "seed_everything",
]

#: Fields that the checkpoints of earlier versions lack.
_ADDED_LATER = {"waited_seconds", "skipping"}


@dataclass
class TrainerState:
    """Progress of one arm; JSON-able, stored in every checkpoint as ``trainer.json``."""

    arm: str
    seed: int
    step: int = 0
    """Optimiser steps done."""
    tokens: int = 0
    """Tokens read, scored or not."""
    seconds: float = 0.0
    """Wall time of the arm over all its sessions, validation and saving included."""
    timed_tokens: int = 0
    """The part of ``tokens`` that tokens per second is about: all but those of compiling steps."""
    timed_seconds: float = 0.0
    """What their batches and steps took; validation and saving are left out."""
    waited_seconds: float = 0.0
    """Those of ``timed_seconds`` that were waited for batches."""
    total_steps: int = 0
    schedule: dict[str, Any] = field(default_factory=dict)
    """The learning-rate settings in force, for readers: the schedule itself is stateless."""
    data: dict[str, Any] = field(default_factory=dict)
    """``TrainingData.state_dict()`` before the next batch."""
    data_description: str = ""
    scaler: dict[str, Any] = field(default_factory=dict)
    """float16's loss scale; empty otherwise."""
    rng: dict[str, Any] = field(default_factory=dict)
    """``capture_rng()``."""
    validation: list[dict[str, Any]] = field(default_factory=list)
    """``{"step": n, <quality name>: value, ...}`` in the order measured."""
    best: dict[str, Any] = field(default_factory=dict)
    """``{"step", "name", "value"}`` of the lowest validation loss so far."""
    skipping: dict[str, Any] = field(default_factory=dict)
    """``Skipping.memory``."""

    @property
    def data_wait(self) -> float:
        """The share of the steps' time that was waited for batches."""
        return self.waited_seconds / self.timed_seconds if self.timed_seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """The state as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> TrainerState:
        """The state written by ``to_json``.

        Raises:
            CheckpointError: keys are missing.
            InputError: there are some that a newer version must have written.
        """
        names = {item.name for item in fields(cls)}
        if not isinstance(values, dict) or not names - _ADDED_LATER <= set(values):
            raise CheckpointError("has other keys than this version writes")
        if unknown := sorted(set(values) - names):
            raise newer_version(unknown[0])
        return cls(**values)

    def note_validation(self, figures: dict[str, float]) -> None:
        """Remember one validation pass, and whether it is the best so far."""
        self.validation.append({"step": self.step, **figures})
        losses = {name: value for name, value in figures.items() if name.endswith("/loss")}
        if not losses:
            return
        if "text/loss" in losses:  # of several sources together, which follow one by one
            losses = {"text/loss": losses["text/loss"]}
        name, value = "loss", sum(losses.values()) / len(losses)
        if len(losses) == 1:
            name = next(iter(losses))
        if not self.best or value < self.best["value"]:
            self.best = {"step": self.step, "name": name, "value": value}


def newer_version(unknown: str) -> InputError:
    """What to tell of a checkpoint that has ``unknown``, though its checksums are right."""
    return InputError(
        f"written by a newer version of wuneng (this one does not know {unknown!r}). "
        "Continue with that version, or begin a new run with --resume never"
    )


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators (CPU and every CUDA device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def draw_apart(rank: int) -> None:
    """Let the generators of torch in process ``rank`` go on differently from those of the first,
    which has the same state: what one draws for its rows another must not draw for its own."""
    if rank:
        same = torch.Generator()
        same.set_state(torch.get_rng_state())
        torch.manual_seed(int(torch.randint(2**62, (), generator=same)) + rank)


def capture_rng() -> dict[str, Any]:
    """The states of all generators as JSON-able values."""
    version, internal, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": [version, list(internal), gauss],
        "numpy": [np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
        "torch": _encode(torch.get_rng_state()),
        "cuda": [_encode(state) for state in cuda],
    }


def restore_rng(states: dict[str, Any]) -> None:
    """Put every generator back to what ``capture_rng`` saw.

    CUDA generators are restored only when as many devices are visible as then.
    """
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(_decode(states["torch"]))
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([_decode(state) for state in states["cuda"]])


def _encode(state: torch.Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode("ascii")


def _decode(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
