"""The token shift's equation as it stands, for plain autograd."""

from __future__ import annotations

import torch
from torch import Tensor


def token_shift_reference(u: Tensor, mu: Tensor) -> Tensor:
    """The equation as it stands, for plain autograd: the oracle of :func:`token_shift`."""
    return torch.lerp(u, torch.cat([torch.zeros_like(u[:, :1]), u[:, :-1]], dim=1), mu)
