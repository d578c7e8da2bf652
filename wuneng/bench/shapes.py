"""What the operators of one group of ``ops`` share: B, T, H, N, the dtype, the device, the call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wuneng.bench.draws import generator_on, normal
from wuneng.bench.engine import Prepared
from wuneng.bench.memory import tensor_bytes
from wuneng.bench.record import Row

__all__ = ["OperatorShapes", "prepared"]

_ROTATING_BYTES = {"cpu": 2**26, "cuda": 2**28, "mps": 2**26}
_MOST_SETS = 8


@dataclass(frozen=True)
class OperatorShapes:
    """What the operators of one group share."""

    batch: int
    tokens: int
    heads: int
    size: int
    dtype: torch.dtype
    dtype_name: str
    device: torch.device

    @property
    def element(self) -> int:
        """Bytes of a number."""
        return torch.empty((), dtype=self.dtype).element_size()

    def row(self, operation: str, arm: str) -> Row:
        """An empty row of this group."""
        return Row("ops", operation, arm, self.tokens, self.batch, self.dtype_name)

    def sets(self, tensors: int, tokens: int | None = None) -> int:
        """Sets of inputs that together outgrow a cache, between 2 and 8."""
        one = tensors * self.batch * (tokens or self.tokens) * self.heads * self.size * self.element
        return max(2, min(_MOST_SETS, -(-_ROTATING_BYTES[self.device.type] // max(one, 1))))


def prepared(
    operator: Callable[..., Any], sets: list[list[Tensor]], backward: bool, output_like: int = 2
) -> Prepared:
    """``operator(*inputs)[0]`` on one set of inputs after the other, or all its gradients.

    Args:
        output_like: which input has the output's shape and type.
    """
    held = tensor_bytes(*sets[0])  # the other sets are there for the timing's sake
    if not backward:

        def forward(index: int) -> Any:
            with torch.no_grad():
                return operator(*sets[index % len(sets)])

        return Prepared(forward, held)
    for inputs in sets:
        for x in inputs:
            x.requires_grad_()
    like = sets[0][output_like]
    dy = normal(like.shape, generator_on(like.device, 1)).to(like)

    def both(index: int) -> Any:
        inputs = sets[index % len(sets)]
        return torch.autograd.grad(operator(*inputs)[0], inputs, dy)

    return Prepared(both, held + tensor_bytes(dy))
