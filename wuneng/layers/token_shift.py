"""Initial values of a token shift x_t + mu (x_{t-1} - x_t): RWKV-7's ramp over the channels."""

from __future__ import annotations

import torch
from torch import Tensor

#: By the letter of what is shifted; the ramp's exponent is this times 1 - l/L.
SHIFT_POWER = {"r": 0.2, "g": 0.2, "w": 0.9, "a": 0.9, "k": 0.7, "v": 0.7}


def shift_ramp(channels: int, power: float) -> Tensor:
    """mu = 1 - (i/C)^p ``[C]``: early channels look back, late ones at the present."""
    return 1 - (torch.arange(channels, dtype=torch.float32) / channels) ** power
