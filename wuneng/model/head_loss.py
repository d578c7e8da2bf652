"""What a model is asked for in place of logits: a loss or scores, made where the head is.

Over 50,000 words the logits of a batch weigh more than the model. So the model is called with a
function of its last hidden states and its head, which takes the logits a chunk at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wuneng.layers.plain_modules import is_matrix
from wuneng.ops.linear_cross_entropy import (
    IGNORED,
    WHOLE_BYTES,
    TopK,
    chunks,
    linear_cross_entropy,
    top_k_distillation,
    top_k_of,
)
from wuneng.ops.linear_cross_entropy.reference import (
    at_least_float32,
    cross_entropy,
    distillation,
)

__all__ = [
    "HeadLoss",
    "ask",
    "called_distillation",
    "called_top_k",
    "called_top_k_distillation",
    "hidden_and_head",
    "is_plain_head",
    "summed_cross_entropy",
    "token_scores",
    "unwrapped",
]

#: Of a head that does not say how many logits it makes.
_MANY_WORDS = 1 << 16
#: Of the last hidden states ``[B, T, D]`` and the head.
HeadLoss = Callable[[Tensor, nn.Module], Tensor]


def ask(model: nn.Module, input_ids: Tensor, documents: Tensor | None, wanted: HeadLoss) -> Tensor:
    """``wanted`` of what ``model`` makes of ``input_ids`` and ``document_ids``, ``[B, T]`` each.

    A model of another class is asked for its logits, which are then all that there is of a head.
    """
    given = {"input_ids": input_ids, "document_ids": documents, "use_cache": False}
    if getattr(getattr(unwrapped(model), "config", None), "model_type", None) == "wuneng":
        found: Tensor = model(**given, head_loss=wanted).loss
        return found
    return wanted(model(**given).logits, nn.Identity())


def hidden_and_head(
    model: nn.Module, input_ids: Tensor, documents: Tensor | None
) -> tuple[Tensor, nn.Module]:
    """The last hidden states ``[B, T, D]`` of ``model`` and its head, not yet multiplied."""
    kept: list[tuple[Tensor, nn.Module]] = []

    def keep(hidden: Tensor, head: nn.Module) -> Tensor:
        kept.append((hidden, head))
        return hidden.new_zeros(())

    ask(model, input_ids, documents, keep)
    return kept[0]


def unwrapped(model: nn.Module) -> nn.Module:
    """What ``torch.compile`` or DDP was given: the names of its parts are those that were saved."""
    if type(model).__name__ == "DistributedDataParallel":  # not imported: slow, and seldom there
        model = model.module  # type: ignore[assignment]
    inner: nn.Module = getattr(model, "_orig_mod", model)
    return inner


def is_plain_head(head: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether the head is its weight and nothing else, so that it need not be called."""
    return is_matrix(head)


def summed_cross_entropy(labels: Tensor, whole_bytes: int = WHOLE_BYTES) -> HeadLoss:
    """Nats summed over the scored of ``labels`` ``[B, T]``, the token that each position predicts.

    Logits are made whole where they have no more than ``whole_bytes`` bytes in float32.
    A head that others have wrapped, hooked or quantised is called, chunk by chunk, and once more
    for its gradients.
    """

    def loss(hidden: Tensor, head: nn.Module) -> Tensor:
        if is_plain_head(head):
            return linear_cross_entropy(
                hidden, head.weight, labels, ignored=IGNORED, whole_bytes=whole_bytes
            )
        if not _is_large(head, labels, whole_bytes):
            return cross_entropy(head(hidden), labels, IGNORED)
        rows, targets = hidden.flatten(0, -2), labels.flatten()
        total = hidden.new_zeros((), dtype=torch.float32)
        for part in chunks(_words(head), len(targets), hidden.device):
            pieces = head, rows[part], targets[part]
            total = total + checkpoint(_called_cross_entropy, *pieces, use_reentrant=False)
        return total

    return loss


def called_distillation(
    student: tuple[Tensor, nn.Module],
    teacher: tuple[Tensor, nn.Module],
    labels: Tensor,
    temperature: float,
    whole_bytes: int = WHOLE_BYTES,
) -> Tensor:
    """``[2]``: KL from the teacher and CE, summed over the scored of ``labels`` ``[B, T]``.

    Of heads that have to be called; chunk by chunk where whole logits would have more than
    ``whole_bytes``.

    Args:
        student, teacher: last hidden states ``[B, T, D]`` and a head; the teacher has no gradients.
    """
    (hidden, head), (taught, teachers_head) = student, teacher
    given = (head, teachers_head, temperature)
    if not any(_is_large(one, labels, whole_bytes) for one in (head, teachers_head)):
        return _called_distillation(*given, hidden, taught, labels)
    rows = (hidden.flatten(0, -2), taught.flatten(0, -2), labels.flatten())
    total = hidden.new_zeros(2, dtype=torch.float32)
    for part in chunks(max(map(_words, (head, teachers_head))), len(rows[-1]), hidden.device):
        pieces = [x[part] for x in rows]
        total = total + checkpoint(_called_distillation, *given, *pieces, use_reentrant=False)
    return total


def called_top_k(hidden: Tensor, head: nn.Module, k: int, temperature: float) -> TopK:
    """The k likeliest tokens after each of ``hidden`` ``[T, D]``, without a graph; a chunk of
    logits at a time."""
    with torch.no_grad():
        parts = chunks(_words(head), len(hidden), hidden.device)
        found = [top_k_of(head(hidden[part]), k, temperature) for part in parts]
    return TopK(
        torch.cat([one.tokens for one in found]),
        torch.cat([one.log_probabilities for one in found]),
        torch.cat([one.log_rest for one in found]),
    )


def called_top_k_distillation(
    hidden: Tensor,
    head: nn.Module,
    kept: TopK,
    labels: Tensor,
    temperature: float,
    whole_bytes: int = WHOLE_BYTES,
) -> Tensor:
    """``[2]``: ``top_k_distillation`` of what ``head`` makes of ``hidden`` ``[B, T, D]``; chunk by
    chunk where whole logits would have more than ``whole_bytes``.

    Args:
        kept: ``[B, T, k]`` of the teacher.
        labels: ``[B, T]``.
    """
    if not _is_large(head, labels, whole_bytes):
        return top_k_distillation(head(hidden), kept, labels, IGNORED, temperature)
    rows, targets = hidden.flatten(0, -2), labels.flatten()
    flat = TopK(
        kept.tokens.flatten(0, -2), kept.log_probabilities.flatten(0, -2), kept.log_rest.flatten()
    )
    total = hidden.new_zeros(2, dtype=torch.promote_types(hidden.dtype, torch.float32))
    for part in chunks(_words(head), len(targets), hidden.device):
        pieces = head, temperature, rows[part], flat.at(part), targets[part]
        total = total + checkpoint(_called_top_k_distillation, *pieces, use_reentrant=False)
    return total


def token_scores(labels: Tensor) -> HeadLoss:
    """``[3, B, T]`` without gradients, of each of ``labels`` ``[B, T]``: its nats (0 where it is
    not scored), 1 where it is scored and the most probable token, 1 where its logits are finite."""

    def scores(hidden: Tensor, head: nn.Module) -> Tensor:
        if not _is_large(head, labels):
            return _scores(head(hidden), labels)
        rows, targets = hidden.flatten(0, -2), labels.flatten()
        parts = chunks(_words(head), len(targets), hidden.device)
        found = [_scores(head(rows[part]), targets[part]) for part in parts]
        return torch.cat(found, dim=1).unflatten(1, labels.shape)

    return scores


def _scores(logits: Tensor, labels: Tensor) -> Tensor:
    nats = F.cross_entropy(
        at_least_float32(logits).flatten(0, -2),
        labels.flatten(),
        ignore_index=IGNORED,
        reduction="none",
    ).view_as(labels)
    scored = labels != IGNORED
    right = (logits.argmax(-1) == labels) & scored
    return torch.stack([nats, right.to(nats), logits.isfinite().all(-1).to(nats)])


def _called_cross_entropy(head: nn.Module, rows: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(head(rows), targets, IGNORED)


def _called_distillation(
    head: nn.Module,
    teachers_head: nn.Module,
    temperature: float,
    rows: Tensor,
    taught: Tensor,
    targets: Tensor,
) -> Tensor:
    with torch.no_grad():
        other = teachers_head(taught)
    return distillation(head(rows), other, targets, IGNORED, temperature)


def _called_top_k_distillation(
    head: nn.Module, temperature: float, rows: Tensor, kept: TopK, targets: Tensor
) -> Tensor:
    return top_k_distillation(head(rows), kept, targets, IGNORED, temperature)


def _words(head: nn.Module) -> int:
    """Logits a position, as far as the head says; what it does not say counts as large."""
    return int(getattr(head, "out_features", _MANY_WORDS))


def _is_large(head: nn.Module, labels: Tensor, whole_bytes: int = WHOLE_BYTES) -> bool:
    """Whether logits are better not made whole. Without a head there is nothing to make."""
    whole = 4 * labels.numel() * _words(head)
    return whole > whole_bytes and not isinstance(head, nn.Identity)
