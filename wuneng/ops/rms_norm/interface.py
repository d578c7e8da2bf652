"""RMSNorm of the last dimension as one operator."""

from __future__ import annotations

import torch
from torch import Tensor

from wuneng.ops.backend import candidates
from wuneng.ops.rms_norm import native
from wuneng.ops.rms_norm.reference import rms_norm_reference

__all__ = ["rms_norm"]


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, backend: str | None = None) -> Tensor:
    """w x / rms(x), where rms(x) is the root of the mean square of the last dimension plus ``eps``.

    Values are torch's to the last bit whichever backend computes: a converted checkpoint's logits
    are compared so. ``native`` takes the gradients in C, and keeps x and one number a row for them.

    Args:
        x: ``[..., D]``. Statistics are float32 whatever half precision comes in.
        weight: ``[D]``.
        backend: as :mod:`wuneng.ops.backend` says.

    Returns:
        ``[..., D]`` in the dtype that x and the weight promote to.
    """
    # Without gradients nothing is gained, and a decoded token would feel the questions.
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        allowed = candidates("rms_norm", x.device, backend)
        if "native" in allowed and native.takes(x, weight):
            return native.rms_norm(x, weight, eps)
    return rms_norm_reference(x, weight, eps)
