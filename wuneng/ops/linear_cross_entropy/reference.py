"""The losses on logits as they stand, under plain autograd: what the chunks are compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32, in which a sum over the vocabulary keeps its digits; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def cross_entropy(logits: Tensor, labels: Tensor, ignored: int) -> Tensor:
    """Nats summed over the scored of ``logits`` ``[..., V]`` and ``labels`` ``[...]``: a scalar."""
    flat = at_least_float32(logits).flatten(0, -2)
    return F.cross_entropy(flat, labels.flatten(), ignore_index=ignored, reduction="sum")


def distillation(
    logits: Tensor, taught: Tensor, labels: Tensor, ignored: int, temperature: float
) -> Tensor:
    """``[2]``: tau^2 KL(teacher || own) at temperature tau (Hinton et al. 2015) and the
    cross-entropy, both summed over scored positions, of two ``[..., V]``."""
    scored = labels != ignored
    own = F.log_softmax(at_least_float32(logits[scored]) / temperature, dim=-1)
    other = F.log_softmax(at_least_float32(taught[scored]) / temperature, dim=-1)
    divergence = temperature**2 * F.kl_div(own, other, reduction="sum", log_target=True)
    return torch.stack([divergence, cross_entropy(logits[scored], labels[scored], ignored)])
