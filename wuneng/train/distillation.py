"""Learning from a teacher's logits: ``loss = kl * KL(teacher || arm) + ce * CE``.

    KL = tau^2 mean_t sum_v p_v (log p_v - log q_v),   p = softmax(z_teacher / tau), q likewise

The mean runs over the positions that the text scores; tau^2 keeps the gradient's size when the
temperature changes (Hinton et al., arXiv 1503.02531).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wuneng.data.batch import IGNORED
from wuneng.errors import RecipeError
from wuneng.model import WuNengConfig
from wuneng.model.head_loss import HeadLoss, hidden_and_head, is_plain_head
from wuneng.ops.linear_cross_entropy import linear_distillation
from wuneng.ops.linear_cross_entropy.reference import distillation
from wuneng.recipe import Distillation
from wuneng.recipe.arms import Arm
from wuneng.train.starting_point import PLAIN, Sources

__all__ = ["Teacher", "teacher_config", "teacher_name"]


@dataclass(frozen=True)
class Teacher:
    """A frozen model in evaluation mode, and how much it is listened to."""

    model: nn.Module
    """Called like the arm's own."""
    settings: Distillation

    def loss(self, input_ids: Tensor, documents: Tensor | None, labels: Tensor) -> HeadLoss:
        """What to ask the arm for: ``[3]``, the loss summed over scored positions, and its two
        parts (KL, CE), unweighted and without a graph.

        Args:
            input_ids, documents, labels: ``[B, T]``, of which the teacher is asked at once.
        """
        with torch.no_grad():
            taught, teachers_head = hidden_and_head(self.model, input_ids, documents)

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
                with torch.no_grad():
                    other = teachers_head(taught)
                parts = distillation(head(hidden), other, labels, IGNORED, tau)
                total = given.kl * parts[0] + given.ce * parts[1]
            return torch.stack([total, *parts.detach()])

        return loss


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
