"""An arm's training in phases: what trains in each, from what, and at which of the steps.

An arm without stages has one phase; a stage is one, or one per layer where its layers learn in
turn. Every phase has moments of its own, and its schedule runs from its first step to its last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from wuneng.errors import RecipeError
from wuneng.recipe import AlignStage, DistillStage, Stage, Training
from wuneng.recipe.arms import Arm
from wuneng.train.alignment import Aligner
from wuneng.train.distillation import SilentSelf, Teacher
from wuneng.train.kept_teacher import KeptSelf
from wuneng.train.trainable import as_stage

__all__ = ["Phase", "phase_at", "phases_of"]


@dataclass(frozen=True)
class Phase:
    """Some steps of an arm's training, one after the other."""

    kind: str
    """``align``, ``distill`` or ``tune``; empty: of an arm without stages."""
    name: str
    """As metrics.jsonl and messages call it."""
    first: int
    """Steps that are done when it begins."""
    training: Training
    """Its own: ``steps`` are the phase's."""
    trainable: Mapping[str, int]
    """Name and size of every parameter that trains in it."""
    settings: AlignStage | DistillStage | None = None
    layers: tuple[int, ...] = ()
    """Whose branches are aligned."""

    @property
    def steps(self) -> int:
        """How many there are."""
        return self.training.total_steps

    @property
    def last(self) -> int:
        """Steps that are done when it ends."""
        return self.first + self.steps

    @property
    def teacher_top_k(self) -> int | None:
        """Tokens of each position of which it is kept on disk what the teacher says; None: it is
        not."""
        return self.settings.teacher_top_k if isinstance(self.settings, DistillStage) else None

    def teacher(self, model: nn.Module, cache: Path | None = None) -> Teacher | Aligner | None:
        """Of whom ``model`` learns in it; None: of the text, or of the arm's own teacher.

        Args:
            cache: below which what a teacher says is kept, where it is.
        """
        if isinstance(self.settings, AlignStage):
            return Aligner(model, self.settings, self.layers)
        if self.settings is None:
            return None
        if self.teacher_top_k is not None:
            assert cache is not None
            return KeptSelf(model, self.settings, cache)
        return SilentSelf(model, self.settings)


def phase_at(phases: Sequence[Phase], step: int) -> Phase:
    """The one that takes the next step once ``step`` are done; at the end the last."""
    return next((phase for phase in phases if step < phase.last), phases[-1])


def phases_of(
    name: str,
    arm: Arm,
    training: Training,
    layers: Sequence[int],
    trainable: Callable[[str | list[str], int | None], Mapping[str, int]],
) -> tuple[Phase, ...]:
    """The phases of ``arm``, whose stages are known to be without contradictions.

    Args:
        training: the arm's.
        layers: those with state heads.
        trainable: name and size of what ``train`` means for the arm (and one layer).

    Raises:
        RecipeError: a stage is too short for its layers to learn in turn.
    """
    given = sum(stage.settings.steps or 0 for stage in arm.stages or ())
    phases: list[Phase] = []
    for index, stage in enumerate(arm.stages or ()):
        settings = stage.settings
        steps = settings.steps or training.total_steps - given
        first = phases[-1].last if phases else 0
        where = f"arms.{name}.stages.{index}.{stage.kind}"
        if not (isinstance(settings, AlignStage) and settings.layers == "in_turn"):
            found = trainable(_train_of(stage, arm), None)
            own = _own_training(training, stage, steps)
            taught = settings if isinstance(settings, AlignStage | DistillStage) else None
            phases.append(Phase(stage.kind, stage.kind, first, own, found, taught, tuple(layers)))
            continue
        if steps < len(layers):
            raise RecipeError(
                f"{where}.steps: expected at least one step for each of the {len(layers)} layers "
                f"with state heads, got {steps}; layers: together needs fewer"
            )
        for number, layer in enumerate(layers):
            share = (number + 1) * steps // len(layers) - number * steps // len(layers)
            own, found = _own_training(training, stage, share), trainable("new", layer)
            label = f"{stage.kind}, layer {layer}"
            phases.append(Phase(stage.kind, label, first, own, found, settings, (layer,)))
            first += share
    return tuple(phases)


def _train_of(stage: Stage, arm: Arm) -> str | list[str]:
    own: str | list[str] | None = getattr(stage.settings, "train", "new")
    if own is None:  # a tune stage's default
        return as_stage(arm.train, has_lora=arm.lora is not None)
    return own


def _own_training(training: Training, stage: Stage, steps: int) -> Training:
    settings = stage.settings
    warmup = settings.warmup_steps
    if warmup is None:
        warmup = round(training.warmup_steps * steps / training.total_steps)
    changes = {
        "steps": steps,
        "tokens": None,
        "warmup_steps": min(warmup, steps - 1),
        "learning_rate": settings.learning_rate or training.learning_rate,
    }
    return training.model_copy(update=changes)
