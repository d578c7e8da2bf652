"""The cross-head interaction's Triton kernels as torch operators: launches, gradients, fakes."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from wuneng.errors import BackendError
from wuneng.ops.cross_head.triton_kernels import (
    KINDS,
    backward_launch,
    cross_head_backward_kernel,
    cross_head_forward_kernel,
    forward_launch,
)
from wuneng.ops.head_arguments import MiddleTensors
from wuneng.ops.wkv7 import triton_launch
from wuneng.ops.wkv7.triton_launch import DTYPES, HEAD_SIZES, on_device, precision, processors

_NAMES = ("A", "R", "scale", "group_mix", "group_norm", "alpha_or_matrix", "beta_or_bias")


def cross_head_triton(kind: str, *tensors: *MiddleTensors, eps: float) -> tuple[Tensor, Tensor]:
    """Arguments and results of :func:`wuneng.ops.cross_head`; both results in A's and R's common
    dtype (A itself where it stays). Under autocast, matrix operands are in autocast's dtype.

    Raises:
        ValueError: a dtype, head size or device that the kernels do not take; the message names
            the argument.
    """
    A, R = tensors[:2]
    operand = _operand(A, R)
    _check(kind, tensors, operand)
    changed, branch = torch.ops.wuneng.cross_head_triton_forward(kind, *tensors, eps, operand)
    return (changed if kind == "additive" else A).flatten(-2), branch.flatten(2)


def takes(kind: str, tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether :func:`cross_head_triton` runs on its arguments A to beta_or_bias."""
    A, R = tensors[:2]
    assert A is not None
    assert R is not None
    try:
        _check(kind, tensors, _operand(A, R))
    except BackendError:
        return False
    return True


def _operand(A: Tensor, R: Tensor) -> torch.dtype:
    """The dtype of matrix operands."""
    device = A.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return torch.promote_types(A.dtype, R.dtype)


def _check(kind: str, tensors: tuple[Tensor | None, ...], operand: torch.dtype) -> None:
    for name, x in zip(_NAMES, tensors, strict=True):
        if x is not None and x.dtype not in DTYPES:
            raise BackendError(
                f"{name} must be float32, bfloat16 or float16 for backend 'triton', got {x.dtype}; "
                "backends 'reference' and 'chunked' also take float64"
            )
    A = tensors[0]
    assert A is not None
    if A.shape[-1] not in HEAD_SIZES:
        raise BackendError(
            f"backend 'triton' takes head sizes {', '.join(map(str, HEAD_SIZES))}, got "
            f"{A.shape[-1]}; backend 'reference' takes any"
        )
    if A.device.type == "cpu" and not triton_launch.INTERPRETING:
        raise BackendError(
            "backend 'triton' needs CUDA tensors, A is on cpu; use backend 'chunked' "
            "(or, to test the kernels, set TRITON_INTERPRET=1 before Python starts)"
        )
    if kind != "additive" and operand == torch.float32 and A.shape[-1] > 64:
        raise BackendError(
            f"backend 'triton' multiplies by {kind}'s matrix in float32 up to head size 64, got "
            f"{A.shape[-1]}; use autocast, or backend 'reference'"
        )


def _constants(kind: str, A: Tensor, R: Tensor, operand: torch.dtype) -> dict[str, Any]:
    mode = precision(operand)
    return {
        "KIND": KINDS[kind],
        "SIZE": A.shape[-1],
        "GROUP": max(1, A.shape[2] // R.shape[2]),
        "SHARED": max(1, R.shape[2] // A.shape[2]),
        "OPERAND": mode["OPERAND"],
        "PRECISION": mode["PRECISION"],
    }


def _numbers(A: Tensor, R: Tensor, scale: Tensor, eps: float) -> tuple[Any, ...]:
    tokens = A.shape[0] * A.shape[1]
    return tokens, R.shape[2], A.shape[2], int(scale.shape[0] == R.shape[2]), eps


#: What both operators are given first, in torch's language.
_GIVEN = (
    "str kind, Tensor A, Tensor R, Tensor scale, Tensor group_mix, Tensor group_norm, "
    "Tensor alpha_or_matrix, Tensor? beta_or_bias, float eps, ScalarType operand"
)


@torch.library.custom_op(
    "wuneng::cross_head_triton_forward", mutates_args=(), schema=f"({_GIVEN}) -> (Tensor, Tensor)"
)
def _forward(*given: Any) -> tuple[Tensor, Tensor]:
    kind, *tensors, eps, operand = given
    A, R, scale = tensors[:3]
    changed, branch = _outputs(kind, A, R)
    tokens = A.shape[0] * A.shape[1]
    launch = forward_launch(operand, A.shape[-1])
    if tokens == 0:
        return changed, branch
    with on_device(A):
        cross_head_forward_kernel[(R.shape[2], triton.cdiv(tokens, launch.block))](
            *(None if x is None else x.contiguous() for x in tensors),
            changed if kind == "additive" else None,
            branch,
            *_numbers(A, R, scale, eps),
            BLOCK=launch.block,
            num_warps=launch.warps,
            num_stages=launch.stages,
            **_constants(kind, A, R, operand),
        )
    return changed, branch


def _outputs(kind: str, A: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(A.dtype, R.dtype)
    changed = A.new_empty(A.shape if kind == "additive" else (0,), dtype=dtype)
    return changed, R.new_empty(*R.shape[:2], 2, *R.shape[2:], dtype=dtype)


@_forward.register_fake
def _(*given: Any) -> tuple[Tensor, Tensor]:
    return _outputs(*given[:3])


@torch.library.custom_op(
    "wuneng::cross_head_triton_backward",
    mutates_args=(),
    schema=f"({_GIVEN}, Tensor? d_changed, Tensor d_branch) -> ({', '.join(['Tensor'] * 7)})",
)
def _backward(*given: Any) -> tuple[Tensor, ...]:
    kind, *tensors, eps, operand, d_changed, d_branch = given
    A, R, scale = tensors[:3]
    gradients = _gradient_outputs(*tensors)
    dA, dR, *_ = gradients
    constants = _constants(kind, A, R, operand)
    launch = backward_launch(operand, A.shape[-1])
    (heads, size), room = R.shape[2:], triton.next_power_of_2(constants["GROUP"])
    # Two programs a multiprocessor; more would only make more parts to add up.
    tiles = triton.cdiv(A.shape[0] * A.shape[1], launch.block)
    blocks = max(1, min(tiles, 2 * processors(A.device) // heads))
    split = A.new_empty(R.shape, dtype=torch.float32) if constants["SHARED"] > 1 else None
    vectors = A.new_empty(blocks, heads, 3, size, dtype=torch.float32)
    mix = A.new_empty(blocks, heads, room, dtype=torch.float32)
    rows = room if kind == "additive" else 2 * size
    matrix = A.new_empty(blocks, heads, rows, size, dtype=torch.float32)
    with on_device(A):
        cross_head_backward_kernel[(heads, blocks)](
            *(None if x is None else x.contiguous() for x in tensors),
            None if d_changed is None else d_changed.contiguous(),
            d_branch.contiguous(),
            dA if split is None else split,
            dR,
            vectors,
            mix,
            matrix if kind == "additive" else None,
            None if kind == "additive" else matrix,
            *_numbers(A, R, scale, eps),
            GROUP_ROOM=room,
            BLOCK=launch.block,
            num_warps=launch.warps,
            num_stages=launch.stages,
            **constants,
        )
    if split is not None:
        summed = split.unflatten(2, (A.shape[2], -1)).sum(3)
        dA.copy_(summed if d_changed is None else summed.add_(d_changed))
    _sum_parts(kind, gradients, vectors, mix, matrix)
    return gradients


def _sum_parts(
    kind: str, gradients: tuple[Tensor, ...], vectors: Tensor, mix: Tensor, matrix: Tensor
) -> None:
    """Add up the programs' parts, in a fixed order: atomics would differ from run to run."""
    _, _, d_scale, d_mix, d_norm, d_alpha_or_matrix, d_beta_or_bias = gradients
    by_channel, norm, beta_or_bias = vectors.sum(0).unbind(1)
    by_head = by_channel.sum(-1)
    d_scale.copy_(by_head if d_scale.shape == by_head.shape else by_head.sum(0, keepdim=True))
    d_norm.copy_(norm)
    d_mix.copy_(mix.sum(0)[:, : d_mix.shape[1]])
    matrix = matrix.sum(0)
    if kind == "additive":
        heads, groups = matrix.shape[0], d_alpha_or_matrix.shape[0]
        # Where state heads share an attention head, each of them has computed the same part.
        matrix = matrix[:: max(1, heads // groups), : max(1, groups // heads)]
        matrix = matrix.flatten(0, 1)
    d_alpha_or_matrix.copy_(matrix)
    if d_beta_or_bias.shape[0]:
        d_beta_or_bias.copy_(beta_or_bias)


def _gradient_outputs(*tensors: *MiddleTensors) -> tuple[Tensor, ...]:
    R = tensors[1]
    return tuple(
        R.new_empty(0) if x is None else torch.empty_like(x, memory_format=torch.contiguous_format)
        for x in tensors
    )


@_backward.register_fake
def _(*given: Any) -> tuple[Tensor, ...]:
    return _gradient_outputs(*given[1:8])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    kind, *tensors, eps, operand = inputs
    ctx.save_for_backward(*tensors)
    ctx.settings = kind, eps, operand


def _differentiate(
    ctx: Any, d_changed: Tensor | None, d_branch: Tensor
) -> tuple[Tensor | None, ...]:
    kind, eps, operand = ctx.settings
    *gradients, d_beta_or_bias = torch.ops.wuneng.cross_head_triton_backward(
        kind, *ctx.saved_tensors, eps, operand, d_changed if kind == "additive" else None, d_branch
    )
    return (
        None,
        *gradients,
        d_beta_or_bias if ctx.saved_tensors[-1] is not None else None,
        None,
        None,
    )


_forward.register_autograd(_differentiate, setup_context=_setup_context)
