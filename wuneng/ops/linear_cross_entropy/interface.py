"""Which form computes a loss: whole logits where they are small, else chunks by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wuneng.ops.backend import candidates
from wuneng.ops.linear_cross_entropy import reference
from wuneng.ops.linear_cross_entropy.by_hand import in_chunks, product_dtype
from wuneng.ops.linear_cross_entropy.reference import at_least_float32
from wuneng.ops.plain import are_plain

#: The label of a position that is not scored, torch's own.
IGNORED = -100
#: Float logits of fewer bytes are made whole: nothing is gained by cutting them.
WHOLE_BYTES = 32 << 20


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    ignored: int = IGNORED,
    whole_bytes: int = WHOLE_BYTES,
    backend: str | None = None,
) -> Tensor:
    """``sum_t -log softmax(hidden_t weight^T)[label_t]`` over the scored positions, in nats.

    Args:
        hidden: ``[..., D]``.
        weight: ``[V, D]``, the head's.
        labels: ``[...]``, the token that each position predicts; ``ignored``: not scored.
        whole_bytes: float32 logits of no more bytes are made whole.
        backend: as :mod:`wuneng.ops.backend` says.

    Returns:
        A scalar of at least float32. Large logits are never whole: its gradients are made with it,
        and serve for one ``backward()``.
    """
    if not _worth_cutting(hidden, weight, labels, whole_bytes, backend):
        return reference.cross_entropy(F.linear(hidden, weight), labels, ignored)
    total: Tensor = _outside_graphs(_cross_entropy_in_chunks)(hidden, weight, labels, ignored)
    return total


def linear_distillation(
    hidden: Tensor,
    weight: Tensor,
    taught_hidden: Tensor,
    taught_weight: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    kl: float,
    ce: float,
    ignored: int = IGNORED,
    whole_bytes: int = WHOLE_BYTES,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """``kl tau^2 KL(teacher || own) + ce CE``, summed over scored positions, both from hidden
    states and heads: neither's logits are ever whole where they are large.

    Args:
        hidden, taught_hidden: ``[..., D]`` of the model and its teacher (each with a D of its own).
        weight, taught_weight: ``[V, D]``.
        labels, ignored, whole_bytes, backend: as :func:`linear_cross_entropy`.
        temperature: tau, of the divergence alone.

    Returns:
        The loss, and ``[2]`` of its two parts before they are weighed (KL, CE), without a graph.
    """
    cut = _worth_cutting(hidden, weight, labels, whole_bytes, backend)
    if not cut or not are_plain(taught_hidden, taught_weight):
        own, taught = F.linear(hidden, weight), F.linear(taught_hidden, taught_weight)
        parts = reference.distillation(own, taught, labels, ignored, temperature)
        return kl * parts[0] + ce * parts[1], parts.detach()
    given = (hidden, weight, taught_hidden, taught_weight, labels)
    total, parts = _outside_graphs(_distillation_in_chunks)(*given, ignored, temperature, kl, ce)
    return total, parts


def _outside_graphs(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``; where torch.compile is at work, which would unroll its chunks, with a break of
    the graph before it."""
    if not torch.compiler.is_compiling():
        return function
    return torch.compiler.disable(function)  # type: ignore[no-any-return]


def _cross_entropy_in_chunks(
    hidden: Tensor, weight: Tensor, labels: Tensor, ignored: int
) -> Tensor:
    if _is_captured(hidden):
        return _cross_entropy_of_all(hidden, weight, labels, ignored)
    rows, targets = _scored(hidden, labels, ignored)

    def of_chunk(logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        losses, gradient = _cross_entropy(logits, targets[part])
        return losses.sum(), gradient

    return in_chunks(rows, weight, of_chunk)


def _cross_entropy_of_all(hidden: Tensor, weight: Tensor, labels: Tensor, ignored: int) -> Tensor:
    """The same without asking the device what is scored: rows that are not count nothing."""
    rows, targets = hidden.flatten(0, -2), labels.flatten()
    scored = (targets != ignored)[:, None]
    targets = torch.where(scored[:, 0], targets, 0)

    def of_chunk(logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        losses, gradient = _cross_entropy(logits, targets[part])
        here = scored[part]
        return torch.where(here, losses, 0.0).sum(), gradient.masked_fill_(~here, 0.0)

    return in_chunks(rows, weight, of_chunk)


def _is_captured(x: Tensor) -> bool:
    """Whether a CUDA graph is being captured, which no value of the device can steer."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def _distillation_in_chunks(
    hidden: Tensor,
    weight: Tensor,
    taught_hidden: Tensor,
    taught_weight: Tensor,
    labels: Tensor,
    ignored: int,
    temperature: float,
    kl: float,
    ce: float,
) -> tuple[Tensor, Tensor]:
    rows, targets = _scored(hidden, labels, ignored)
    taught_rows, _ = _scored(taught_hidden, labels, ignored)
    dtype = product_dtype(taught_hidden)
    taught_rows, taught_weight = taught_rows.detach().to(dtype), taught_weight.detach().to(dtype)
    parts = hidden.new_zeros(2, dtype=torch.promote_types(hidden.dtype, torch.float32))

    def of_chunk(logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        other = at_least_float32(taught_rows[part] @ taught_weight.t())
        other = F.log_softmax(other / temperature, dim=-1)
        own = F.log_softmax(logits / temperature, dim=-1)
        divergence = temperature**2 * F.kl_div(own, other, reduction="sum", log_target=True)
        gradient = (own.exp_() - other.exp_()) * (kl * temperature)
        losses, by_logits = _cross_entropy(logits, targets[part])
        entropy = losses.sum()
        parts.add_(torch.stack([divergence, entropy]))
        return kl * divergence + ce * entropy, gradient.add_(by_logits, alpha=ce)

    return in_chunks(rows, weight, of_chunk), parts


def _cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropies ``[n, 1]`` of ``logits`` ``[n, V]``, and their sum's gradient in their
    place."""
    # In place throughout: logsumexp would make a second chunk.
    highest, of_targets = logits.amax(-1, keepdim=True), logits.gather(1, targets[:, None])
    gradient = logits.sub_(highest).exp_()
    total = gradient.sum(-1, keepdim=True)
    losses = total.log() + highest - of_targets
    minus_one = torch.full_like(of_targets, -1.0)
    return losses, gradient.div_(total).scatter_add_(1, targets[:, None], minus_one)


def _worth_cutting(
    hidden: Tensor, weight: Tensor, labels: Tensor, whole_bytes: int, backend: str | None
) -> bool:
    """Whether the logits are many, and of a kind that the chunks are right for.

    Not float16: its gradients need the scale that the loss is multiplied by afterwards.
    """
    by_hand = "chunked" in candidates("linear_cross_entropy", hidden.device, backend)
    if not by_hand or not are_plain(hidden, weight, labels):
        return False
    size = 4 * labels.numel() * weight.shape[0]
    return size > whole_bytes and product_dtype(hidden) != torch.float16


def _scored(hidden: Tensor, labels: Tensor, ignored: int) -> tuple[Tensor, Tensor]:
    """The scored rows ``[n, D]`` of ``hidden`` and their labels ``[n]``."""
    rows, targets = hidden.flatten(0, -2), labels.flatten()
    scored = targets != ignored
    return (rows, targets) if bool(scored.all()) else (rows[scored], targets[scored])
