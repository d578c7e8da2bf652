"""Where a model stands in the phases of its training: what trains, how, and from whom.

Nothing of it is saved but the optimiser's moments: all follows from the steps that are done.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from wuneng.recipe import Training
from wuneng.train.alignment import Aligner
from wuneng.train.distillation import Teacher
from wuneng.train.optimizer import build_optimizer, set_learning_rate
from wuneng.train.phases import Phase, phase_at
from wuneng.train.schedule import learning_rate_at
from wuneng.train.trainable import freeze

__all__ = ["PhaseWalk"]


class PhaseWalk:
    """Of one model; without ``phases`` all steps are alike and train what requires gradients."""

    def __init__(
        self,
        model: nn.Module,
        training: Training,
        phases: Sequence[Phase],
        teacher: Teacher | None,
        cache: Path | None = None,
    ) -> None:
        """``teacher``: the arm's own, where a phase brings none; ``cache``: for ``Phase``'s."""
        self._cache = cache
        self._model, self._own_teacher, self._staged = model, teacher, bool(phases)
        self._phases = phases or (Phase("", "", 0, training, {}),)
        self.phase = self._phases[0]
        self.teacher: Teacher | Aligner | None = teacher
        self.optimizer: torch.optim.Optimizer = build_optimizer(model, training)

    def is_due(self, step: int) -> bool:
        """Whether the next phase begins once ``step`` are done."""
        return step == self.phase.last

    def enter(self, step: int) -> str | None:
        """The phase that takes the step after ``step``, from moments of zero; in words."""
        if not self._staged:
            return None
        self.phase = phase = phase_at(self._phases, step)
        freeze(self._model, phase.trainable)
        self.optimizer = build_optimizer(self._model, phase.training)
        over = step >= phase.last
        own = self._own_teacher
        self.teacher = None if over else phase.teacher(self._model, self._cache) or own
        trained = sum(phase.trainable.values())
        return (
            f"{phase.name}, steps {phase.first + 1:,} to {phase.last:,}: "
            f"{trained:,} parameters train"
            + (f"; what the teacher says is kept in {self._cache}" if phase.teacher_top_k else "")
        )

    def has_begun(self, step: int) -> bool:
        """Whether some of the ``step`` that are done were this phase's: then it has moments."""
        return step > self.phase.first

    def learning_rate(self, step: int) -> float:
        """Give the optimiser that of the step after ``step``, and return it."""
        phase = self.phase
        rate = learning_rate_at(step - phase.first, phase.steps, phase.training)
        set_learning_rate(self.optimizer, rate)
        return rate

    def taken(self, step: int) -> None:
        """``step`` are done: what a phase leaves behind at its end is cleared away."""
        if step == self.phase.last and isinstance(self.teacher, Aligner):
            self.teacher.close(done=True)
            self.teacher = None
