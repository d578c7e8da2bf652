"""What training one arm from one seed is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from wuneng.data.batch import TrainingData, ValidationData
from wuneng.recipe import Training
from wuneng.records import ArmDirectory
from wuneng.train.distillation import Teacher
from wuneng.train.loggers import Logger
from wuneng.train.phases import Phase
from wuneng.train.step import Numerics
from wuneng.train.step_range import StepRange

__all__ = ["ArmJob"]


@dataclass(frozen=True)
class ArmJob:
    """Everything that training one arm from one seed needs."""

    arm: str
    seed: int
    model: nn.Module
    """Called as ``model(input_ids=, document_ids=, use_cache=False).logits``."""
    training: Training
    """The arm's own settings."""
    train: TrainingData
    """At its first batch."""
    validation: ValidationData
    data_description: str
    directory: ArmDirectory
    numerics: Numerics
    loggers: Sequence[Logger] = ()
    profile: StepRange | None = None
    """Steps that are profiled."""
    flops_per_token: float = 0.0
    """Of training, for the share of the device's arithmetic that is used; 0: not known."""
    teacher: Teacher | None = None
    phases: tuple[Phase, ...] = ()
    """In which it is trained; empty: all steps are alike, and train what requires gradients."""
    teacher_cache: Path | None = None
    """Below which what a phase's teacher says is kept, where the phase has it so."""
    in_company: bool = False
    """No forward call may have a single row: the model reads another row's state."""
    shards: bool = False
    """Every process writes its own part of a checkpoint."""
