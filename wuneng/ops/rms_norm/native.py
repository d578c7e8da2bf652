"""RMSNorm whose gradients are taken in C (``rms_norm.c``); its values are torch's own."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from wuneng.ops.native.compiler import library
from wuneng.ops.plain import are_plain
from wuneng.ops.rms_norm.reference import rms_norm_reference

RMS_NORM = struct.Struct("=11q")
#: Of a program: at least so many rows, and at most so many programs, whatever the threads.
_FEWEST_ROWS, _MOST_BLOCKS = 16, 32
#: Numbers up to which waking a second thread takes longer than the work.
_LEAST_WORK = 2**15
#: The library of this head size is taken: the kernel is the same in all.
_LIBRARY = 64


def takes(x: Tensor, weight: Tensor) -> bool:
    """Whether the C kernel exists here and takes these: plain float32 on the CPU, rows as they lie,
    and nobody who traces, casts or differentiates in another way than backwards."""
    if torch.compiler.is_compiling() or x.dtype != torch.float32 or weight.dtype != torch.float32:
        return False
    if not (x.is_cpu and weight.is_cpu and are_plain(x, weight) and x.is_contiguous()):
        return False
    if weight.shape != x.shape[-1:] or not x.numel() or torch.is_autocast_enabled("cpu"):
        return False
    if (
        torch._C._functorch.maybe_get_level(x) > 0
        or torch._C._functorch.maybe_get_level(weight) > 0
    ):
        return False
    if torch.autograd.forward_ad._current_level >= 0:
        return False
    return library(_LIBRARY) is not None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Arguments and results of :func:`wuneng.ops.rms_norm`, which :func:`takes` them."""
    made: Tensor = _RMSNorm.apply(x, weight, eps)
    return made


@lru_cache
def _kernels() -> Any:
    kernels = library(_LIBRARY)
    assert kernels is not None
    kernels.rms_norm_backward.restype = None
    return kernels


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        # The reference's operations in its order, in place where nobody sees it.
        inverse = x.pow(2).mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        ctx.eps = eps
        return (x * inverse).mul_(weight)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody differentiates this once more
            with torch.enable_grad():
                out = rms_norm_reference(x, weight, ctx.eps)
            wanted = [u for u in (x, weight) if u.requires_grad]
            found = iter(torch.autograd.grad(out, wanted, d_out, create_graph=True))
            d_x, d_weight = (next(found) if u.requires_grad else None for u in (x, weight))
        else:
            d_x, d_weight = _backward(x, weight, inverse, d_out)
        needed = ctx.needs_input_grad
        return d_x if needed[0] else None, d_weight if needed[1] else None, None


def _backward(x: Tensor, weight: Tensor, inverse: Tensor, d_out: Tensor) -> tuple[Tensor, Tensor]:
    size, weight, d_out = x.shape[-1], weight.contiguous(), d_out.contiguous()
    rows = x.numel() // size
    block = max(_FEWEST_ROWS, -(-rows // _MOST_BLOCKS))
    d_x, d_weight = torch.empty_like(x), torch.empty_like(weight)
    parts = x.new_empty(-(-rows // block), size)
    threads = 1 if x.numel() < _LEAST_WORK else torch.get_num_threads()
    tensors = (x, weight, inverse, d_out, d_x, d_weight, parts)
    places = [u.data_ptr() for u in tensors]
    _kernels().rms_norm_backward(RMS_NORM.pack(rows, size, threads, block, *places))
    return d_x, d_weight
