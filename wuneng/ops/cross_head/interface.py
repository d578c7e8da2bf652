"""Cross-head interaction as one operator: all that comes before its two projections.

    A^g_s  = norm( sum_j mix_sj A_sj )         each state head's attention heads, RMS-normalised
    additive   A' = A + alpha * up(R)          Mid = A^g + beta * R
    gated      g = sigma([A^g; R] W_g + b_g)   Mid = g * A^g + (1 - g) * R
    concat     Mid = [A^g; R] W_m
    branch     [lambda * R; Mid]

(Our reading of arXiv 2504.19191, as ``wuneng.layers.middle`` tells.) ``additive`` alone
changes A; where H < S an attention head serves S / H state heads, and up(R) is their mean.

Backends (:mod:`wuneng.ops.backend` chooses): ``reference`` (the equations, plain autograd),
``chunked`` (by hand, forward and backward, in tiles for a CPU's cache), ``native`` (C, forward and
backward) and ``triton`` (fused kernels, CUDA). Unasked it is C on a CPU with a compiler, by hand on
one without, and the equations elsewhere and under torch.compile.

Legend: B batch, T tokens, H attention heads, S state heads, N head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wuneng.ops.backend import HAS_TRITON, candidates
from wuneng.ops.cross_head import native, native_pass
from wuneng.ops.cross_head.by_hand import cross_head_by_hand
from wuneng.ops.cross_head.reference import KINDS, cross_head_reference
from wuneng.ops.head_arguments import MiddleTensors
from wuneng.ops.native import few_tokens
from wuneng.ops.plain import are_plain


def cross_head(
    kind: str,
    A: Tensor,
    R: Tensor,
    scale: Tensor,
    group_mix: Tensor,
    group_norm: Tensor,
    alpha_or_matrix: Tensor,
    beta_or_bias: Tensor | None,
    *,
    eps: float,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """A' and the branch's input. Differentiable once in every tensor argument; deterministic.

    Args:
        kind: ``additive``, ``gated`` or ``concat``.
        A: attention's heads ``[B, T, H, N]``; one of H and S is a multiple of the other.
        R: the state heads' readout ``[B, T, S, N]``.
        scale: lambda, ``[S]`` or ``[1]``.
        group_mix: ``[S, max(1, H / S)]``.
        group_norm: the RMS norm's weight ``[S, N]``; ``eps`` is added to its mean of squares.
        alpha_or_matrix: alpha ``[H, N]``, W_g ``[S, 2 N, N]`` or W_m ``[S, 2 N, N]``.
        beta_or_bias: beta ``[S, N]``, b_g ``[S, N]`` or None.
        backend: as :mod:`wuneng.ops.backend` says. By hand is float32 or float64 throughout; mixed
            and half precision, autocast and compilation take the equations. ``triton`` as an
            argument says what it cannot take; asked for otherwise, it leaves that to the rest.

    Returns:
        A' ``[B, T, H * N]`` and ``[lambda * R; Mid]`` ``[B, T, 2 * S * N]``, in the dtypes that
        the equations promote to. The norm's statistics are float32, or float64 for float64.

    Raises:
        ValueError: the kind or the backend is unknown, or ``triton`` cannot take an argument; the
            message names it.
        ModuleNotFoundError: backend ``triton`` without Triton installed.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    allowed = candidates("cross_head", A.device, backend)
    tensors = (A, R, scale, group_mix, group_norm, alpha_or_matrix, beta_or_bias)
    if backend != "triton" and not _have_their_shapes(
        kind, tensors
    ):  # torch broadcasts what a kernel would read past
        return cross_head_reference(kind, *tensors, eps)
    if "triton" in allowed and (backend == "triton" or (HAS_TRITON and are_plain(*tensors))):
        from wuneng.ops.cross_head import triton_autograd

        if backend == "triton" or triton_autograd.takes(kind, tensors):
            return triton_autograd.cross_head_triton(kind, *tensors, eps=eps)
    if "native" in allowed and few_tokens.takes(R.shape[-1], _products(kind, R), *tensors):
        return native.cross_head(kind, *tensors, eps=eps)
    if "native" in allowed and native_pass.is_available(R.shape[-1], *tensors):
        return native_pass.cross_head_pass(kind, *tensors, eps=eps)
    if "chunked" in allowed and _is_plain(tensors):
        return cross_head_by_hand(kind, *tensors, eps=eps)
    return cross_head_reference(kind, *tensors, eps)


def _have_their_shapes(kind: str, tensors: MiddleTensors) -> bool:
    A, R, scale, mix, norm, alpha_or_matrix, beta_or_bias = tensors
    heads, size = A.shape[-2:]
    states = R.shape[-2]
    return (
        scale.shape in ((states,), (1,))
        and mix.shape == (states, max(1, heads // states))
        and norm.shape == (states, size)
        and alpha_or_matrix.shape
        == ((heads, size) if kind == "additive" else (states, 2 * size, size))
        and (beta_or_bias is None or beta_or_bias.shape == (states, size))
    )


def _products(kind: str, R: Tensor) -> int:
    """Multiplications, about."""
    return R.numel() * (1 if kind == "additive" else 2 * R.shape[-1])


def _is_plain(tensors: tuple[Tensor | None, ...]) -> bool:
    """One dtype, float32 or float64, and nobody who would cast (autocast) or fuse (a compiler)."""
    A = tensors[0]
    assert A is not None
    if A.dtype not in (torch.float32, torch.float64) or torch.compiler.is_compiling():
        return False
    if not are_plain(*tensors) or any(x is not None and x.dtype != A.dtype for x in tensors):
        return False
    return not torch.is_autocast_enabled(A.device.type)
