"""The cross-head interaction of many tokens in C, as an operator of autograd.

``cross_head_forward.c`` and ``cross_head_backward.c`` say what is computed. Of the forward pass
nothing is kept but its arguments and the gate of the kind ``gated``.

Legend: B batch, T tokens, H attention heads, S state heads, N head size.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from wuneng.ops.cross_head.native import CROSS_HEAD, KINDS
from wuneng.ops.head_arguments import MiddleTensors
from wuneng.ops.native.compiler import HEAD_SIZES, library
from wuneng.ops.plain import are_plain

#: What follows :data:`CROSS_HEAD` in the argument block of a pass.
PASS = struct.Struct("=15q")
#: Tokens of a program, forward and backward, where sums of weights' gradients are kept for each.
_FORWARD_BLOCK, _BACKWARD_BLOCK = 48, 120
#: Numbers of ``[T, S, N]`` up to which waking a second thread takes longer than the work.
_LEAST_WORK = 2**13


def is_available(size: int, *tensors: Tensor | None) -> bool:
    """Whether the C kernels exist on this machine and take these: plain float32 on the CPU."""
    if size not in HEAD_SIZES or torch.compiler.is_compiling():
        return False
    for x in tensors:
        if x is not None and not (x.is_cpu and x.dtype == torch.float32 and are_plain(x)):
            return False
    return not torch.is_autocast_enabled("cpu") and library(size) is not None


def cross_head_pass(kind: str, *tensors: *MiddleTensors, eps: float) -> tuple[Tensor, Tensor]:
    """Arguments and results of :func:`wuneng.ops.cross_head`."""
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        return _CrossHead.apply(kind, eps, *tensors)
    changed, branch, _ = _forward(kind, eps, tensors, keep=False)
    return changed, branch


@lru_cache
def _kernels(size: int) -> Any:
    kernels = library(size)
    assert kernels is not None
    kernels.cross_head_forward.restype = kernels.cross_head_backward.restype = None
    return kernels


def _contiguous(given: Any) -> MiddleTensors:
    tensors: Any = tuple(None if x is None else x.contiguous() for x in given)
    made: MiddleTensors = tensors
    return made


def _block(
    kind: str, eps: float, tensors: MiddleTensors, outputs: tuple[int, int], block: int, rest: Any
) -> bytes:
    """The argument block; ``tensors`` are contiguous, ``rest`` what follows the block's tokens."""
    A, R, scale = tensors[:3]
    batch, tokens, heads, _ = A.shape
    threads = 1 if R.numel() < _LEAST_WORK else torch.get_num_threads()
    return CROSS_HEAD.pack(
        *(batch * tokens, heads, R.shape[2], KINDS[kind], scale.numel(), eps),
        *map(_address, tensors),
        *outputs,
    ) + PASS.pack(threads, block, *rest)


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _forward(kind: str, eps: float, given: Any, keep: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """A', the branch, and the gate ``[B, T, S, N]`` where it is to be kept and there is one."""
    tensors = _contiguous(given)
    A, R = tensors[:2]
    batch, tokens, state_heads, size = R.shape
    changed = torch.empty_like(A) if kind == "additive" else None
    branch = R.new_empty(batch, tokens, 2 * state_heads * size)
    gate = torch.empty_like(R) if keep and kind == "gated" else None
    outputs = _address(changed), branch.data_ptr()
    rest = (_address(gate), *[0] * 12)
    _kernels(size).cross_head_forward(_block(kind, eps, tensors, outputs, _FORWARD_BLOCK, rest))
    return (given[0] if changed is None else changed).flatten(-2), branch, gate


class _CrossHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kind: str, eps: float, *tensors: Any) -> tuple[Tensor, Tensor]:
        changed, branch, gate = _forward(kind, eps, tensors, keep=True)
        ctx.save_for_backward(*tensors, gate)
        ctx.kind, ctx.eps = kind, eps
        ctx.set_materialize_grads(False)
        return changed, branch

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *d_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, gate = ctx.saved_tensors
        return None, None, *_backward(ctx.kind, ctx.eps, tensors, gate, *d_outputs)


def _backward(
    kind: str,
    eps: float,
    given: Any,
    gate: Tensor | None,
    d_changed: Tensor | None,
    d_branch: Tensor | None,
) -> MiddleTensors:
    """Gradients of all seven tensors."""
    tensors = _contiguous(given)
    R, scale, mix, _, matrix, bias = tensors[1:]
    batch, tokens, state_heads, size = R.shape
    if d_branch is None:
        d_branch = R.new_zeros(batch, tokens, 2 * state_heads * size)
    turned = None if kind == "additive" else matrix.transpose(1, 2).contiguous()
    dA, dR, _, d_mix, d_norm, d_matrix = (torch.empty_like(x) for x in tensors[:6] if x is not None)
    d_bias = None if bias is None else torch.empty_like(bias)
    d_scale = scale.new_empty(state_heads)
    blocks = -(-batch * tokens // _BACKWARD_BLOCK) or 1
    vectors = 2 + mix.shape[1] + (0 if turned is None else 2 * size)
    parts = R.new_empty(blocks, state_heads, vectors, size)
    scalars = torch.empty(blocks, state_heads, 1 + mix.shape[1], dtype=torch.float64)
    if not R.numel():  # no program writes them
        parts.zero_()
    behind = [None if x is None else x.contiguous() for x in (d_changed, d_branch)]
    made = (dA, dR, parts, scalars, d_scale, d_mix, d_norm, d_matrix, d_bias)
    rest = map(_address, (gate, turned, *behind, *made))
    _kernels(size).cross_head_backward(_block(kind, eps, tensors, (0, 0), _BACKWARD_BLOCK, rest))
    if scale.numel() < state_heads:
        d_scale = d_scale.sum(0, keepdim=True)
    return dA, dR, d_scale, d_mix, d_norm, d_matrix, d_bias
