"""Cross-head interaction: what mixes attention's heads with what the state read.

``reference`` (the equations of each kind), ``forward``, ``backward`` and ``by_hand`` (torch, in
tiles), ``triton_kernels`` and ``triton_autograd`` (CUDA), ``native`` (a few
tokens in C), ``interface`` (who computes).
"""

from wuneng.ops.cross_head.interface import cross_head
from wuneng.ops.cross_head.reference import (
    FORMULAS,
    KINDS,
    additive,
    concat,
    cross_head_reference,
    gated,
    grouped_heads,
)

__all__ = [
    "FORMULAS",
    "KINDS",
    "additive",
    "concat",
    "cross_head",
    "cross_head_reference",
    "gated",
    "grouped_heads",
]
