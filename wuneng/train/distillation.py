"""Learning from a teacher's logits: ``loss = kl * KL(teacher || arm) + ce * CE``.

    KL = tau^2 mean_t sum_v p_v (log p_v - log q_v),   p = softmax(z_teacher / tau), q likewise

The mean runs over the positions that the text scores; tau^2 keeps the gradient's size when the
temperature changes (Hinton et al., arXiv 1503.02531).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from wuneng.data.batch import IGNORED
from wuneng.errors import RecipeError
from wuneng.model import WuNengConfig
from wuneng.model.branch_way import silenced
from wuneng.model.head_loss import (
    HeadLoss,
    called_distillation,
    hidden_and_head,
    is_plain_head,
)
from wuneng.ops.linear_cross_entropy import linear_distillation
from wuneng.recipe import LogitLoss
from wuneng.recipe.arms import Arm
from wuneng.train.starting_point import PLAIN, Sources

__all__ = ["SilentSelf", "Teacher", "teacher_config", "teacher_name"]


@dataclass(frozen=True)
class Teacher:
    """A frozen model in evaluation mode, and how much it is listened to."""

    model: nn.Module
    """Called like the arm's own."""
    settings: LogitLoss
    parts: ClassVar[tuple[str, ...]] = ("kl", "ce")
    """What the loss consists of, as metrics.jsonl calls it."""

    def heard(self, input_ids: Tensor, documents: Tensor | None) -> tuple[Tensor, nn.Module]:
        """The teacher's last hidden states ``[B, T, D]`` and its head, without a graph."""
        with torch.no_grad():
            return hidden_and_head(self.model, input_ids, documents)

    def loss(self, input_ids: Tensor, documents: Tensor | None, labels: Tensor) -> HeadLoss:
        """What to ask the arm for: ``[3]``, the loss summed over scored positions, and its two
        parts (KL, CE), unweighted and without a graph.

        Args:
            input_ids, documents, labels: ``[B, T]``, of which the teacher is asked at once.
        """
        taught, teachers_head = self.heard(input_ids, documents)

        def loss(hidden: Tensor, head: nn.Module) -> Tensor:
            given, tau = self.settings, self.settings.temperature
            if is_plain_head(head) and is_plain_head(teachers_head):
                total, parts = linear_distillation(
                    *(hidden, head.weight, taught, teachers_head.weight, labels),
                    temperature=tau,
                    kl=given.kl,
                    ce=given.ce,
                    ignored=IGNORED,
                )
            else:
                parts = called_distillation(
                    (hidden, head), (taught, teachers_head), labels, temperature=tau
                )
                total = given.kl * parts[0] + given.ce * parts[1]
            return torch.stack([total, *parts.detach()])

        return loss


class SilentSelf(Teacher):
    """The model that learns, with its branch silent: what it was made of, in memory once."""

    def heard(self, input_ids: Tensor, documents: Tensor | None) -> tuple[Tensor, nn.Module]:
        """As of the source; the model is in training mode again afterwards."""
        with silenced(self.model):
            return super().heard(input_ids, documents)


def teacher_name(arm: Arm) -> str | None:
    """The model that ``arm`` learns from: the one named, else what the arm starts from."""
    return None if arm.distill is None else arm.distill.teacher or arm.init_from


def teacher_config(arm: str, teacher: str, student: WuNengConfig, sources: Sources) -> WuNengConfig:
    """The architecture of ``arm``'s teacher.

    Raises:
        ModelError: no usable model is there.
        RecipeError: its vocabulary is not the arm's.
    """
    config = sources.config(teacher, PLAIN)
    if config.vocab_size != student.vocab_size:
        raise RecipeError(
            f"arms.{arm}: the teacher {teacher} has {config.vocab_size} token ids, the arm "
            f"{student.vocab_size}; logits can only be compared over one vocabulary"
        )
    return config
