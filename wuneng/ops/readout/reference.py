"""The readout's equations as they stand, for plain autograd."""

from __future__ import annotations

import torch
from torch import Tensor


def state_readout_reference(
    y: Tensor,
    r: Tensor,
    key: Tensor,
    v: Tensor,
    *,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float,
    bonus: Tensor | None,
    gate: Tensor | None,
) -> Tensor:
    """The equations as they stand, for plain autograd: the oracle of :func:`state_readout`."""
    if norm_weight is not None and norm_bias is not None:
        y = torch.nn.functional.layer_norm(y, y.shape[-1:], eps=norm_eps) * norm_weight + norm_bias
    if bonus is not None:
        y = y + (r * key * bonus).sum(-1, keepdim=True) * v
    return y if gate is None else y * gate
