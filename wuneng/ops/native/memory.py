"""Room for what the C kernels write: float32 on the CPU, whatever torch's defaults are."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["room"]


def room(*shape: int) -> Tensor:
    """An uninitialised tensor of this shape."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")
