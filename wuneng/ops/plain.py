"""Which tensors a kernel may read by their address: plain ones, with memory of their own.

A subclass (quantised weights, a distributed or a fake tensor) says one dtype and shape and stores
something else. Operators give such tensors to torch's own operations, which ask the subclass.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import Parameter

_PLAIN = (Tensor, Parameter)


def are_plain(*tensors: Tensor | None) -> bool:
    """Whether each is None or exactly a ``Tensor`` or ``Parameter`` that is not on ``meta``."""
    return all(x is None or (type(x) in _PLAIN and not x.is_meta) for x in tensors)
