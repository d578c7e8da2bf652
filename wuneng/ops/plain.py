"""Which tensors a kernel may read by their address: plain ones, with memory of their own.

A subclass (quantised weights, a distributed or a fake tensor) says one dtype and shape and stores
something else. Operators give such tensors to torch's own operations, which ask the subclass.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import Parameter

PLAIN_TYPES = {Tensor, Parameter}
"""What stores exactly what it says. A test that traces without memory adds its own kind."""


def are_plain(*tensors: Tensor | None) -> bool:
    """Whether each is None or exactly a ``Tensor`` or ``Parameter`` that is not on ``meta``."""
    for x in tensors:  # noqa: SIM110 - asked at every decoded token, where a generator would be felt
        if x is not None and (type(x) not in PLAIN_TYPES or x.is_meta):
            return False
    return True
