"""Learning from a teacher's logits: ``loss = kl * KL(teacher || arm) + ce * CE``.

    KL = tau^2 mean_t sum_v p_v (log p_v - log q_v),   p = softmax(z_teacher / tau), q likewise

The mean runs over the positions that the text scores; tau^2 keeps the gradient's size when the
temperature changes (Hinton et al., arXiv 1503.02531).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wuneng.data.batch import IGNORED
from wuneng.errors import RecipeError
from wuneng.model import WuNengConfig
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

    def logits(self, input_ids: Tensor, documents: Tensor | None) -> Tensor:
        """``[B, T, V]`` for ``input_ids`` ``[B, T]``; no gradient is kept."""
        with torch.no_grad():
            logits: Tensor = self.model(
                input_ids=input_ids, document_ids=documents, use_cache=False
            ).logits
        return logits

    def loss(self, logits: Tensor, taught: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, summed over scored positions, and its two parts ``[2]`` (KL, CE), unweighted.

        Args:
            logits, taught: ``[B, T, V]`` of the arm and the teacher.
            labels: ``[B, T]``.
        """
        tau = self.settings.temperature
        scored = labels != IGNORED
        own = F.log_softmax(logits[scored].float() / tau, dim=-1)
        other = F.log_softmax(taught[scored].float() / tau, dim=-1)
        divergence = tau**2 * F.kl_div(own, other, reduction="sum", log_target=True)
        entropy = F.cross_entropy(logits[scored].float(), labels[scored], reduction="sum")
        total = self.settings.kl * divergence + self.settings.ce * entropy
        return total, torch.stack([divergence.detach(), entropy.detach()])


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
