"""The readout's equations as they stand, for plain autograd."""

from __future__ import annotations

import torch
from torch import Tensor

#: What is read out: y, r, k~ and v; norm weight and bias, bonus and gate, or None.
Optional = Tensor | None
ReadoutTensors = tuple[Tensor, Tensor, Tensor, Tensor, Optional, Optional, Optional, Optional]


def state_readout_reference(*tensors: *ReadoutTensors, norm_eps: float) -> Tensor:
    """The equations as they stand, for plain autograd: the oracle of :func:`state_readout`."""
    y, r, key, v, norm_weight, norm_bias, bonus, gate = tensors
    if norm_weight is not None and norm_bias is not None:
        y = torch.nn.functional.layer_norm(y, y.shape[-1:], eps=norm_eps) * norm_weight + norm_bias
    if bonus is not None:
        y = y + (r * key * bonus).sum(-1, keepdim=True) * v
    return y if gate is None else y * gate
