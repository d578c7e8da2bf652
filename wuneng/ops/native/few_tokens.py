"""When one or a few decoded tokens go through C, where dispatching torch operators costs the most.

Shared by the operators that have such kernels beside them: :mod:`wuneng.ops.low_rank` and
:mod:`wuneng.ops.cross_head`, and by :mod:`wuneng.ops.native.hybrid_token`. Nothing there is
differentiated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wuneng.ops.native.compiler import HEAD_SIZES, library
from wuneng.ops.plain import are_plain

#: Multiplications up to which one thread's loops beat torch's products and their dispatch.
MOST_PRODUCTS = 2**18


def takes(size: int, products: int, *tensors: Tensor | None) -> bool:
    """Whether these tensors (contiguous float32 on the CPU, no gradients) go through C.

    Args:
        size: the head size that the kernels are built for.
        products: multiplications of the call.
    """
    if products > MOST_PRODUCTS or size not in HEAD_SIZES or torch.compiler.is_compiling():
        return False
    graded = torch.is_grad_enabled()
    for x in tensors:
        if x is not None and (
            x.dtype != torch.float32
            or not are_plain(x)
            or x.device.type != "cpu"
            or not x.is_contiguous()
            or (graded and x.requires_grad)
        ):
            return False
    return not torch.is_autocast_enabled("cpu") and library(size) is not None
