"""Random numbers for the benchmark's inputs, drawn where they are needed.

On a GPU by its own generator: the hundreds of millions that one group of cases takes would keep one
core of the host busy for minutes. Elsewhere by the CPU's, so that a seed gives the same numbers on
every machine.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["generator_on", "normal", "uniform"]


def generator_on(device: torch.device, seed: int) -> torch.Generator:
    """A seeded generator for tensors that are wanted on ``device``."""
    where = device if device.type == "cuda" else torch.device("cpu")
    return torch.Generator(where).manual_seed(seed)


def normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Standard normal float32 numbers of a shape, on the generator's device."""
    return torch.randn(tuple(shape), generator=generator, device=generator.device)


def uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """float32 numbers from [0, 1) of a shape, on the generator's device."""
    return torch.rand(tuple(shape), generator=generator, device=generator.device)
