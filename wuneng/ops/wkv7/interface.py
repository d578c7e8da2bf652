"""The WKV-7 operator as callers see it: choice of backend, one-token shortcut.

Backends: ``reference`` (token loop), ``chunked`` (matrix form in torch, any device), ``native``
(token loop in C, CPU, where there is a compiler), ``triton`` (fused kernels, CUDA) and ``fla``
(flash-linear-attention's, CUDA). Who chooses: :mod:`wuneng.ops.backend`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, overload

import torch
from torch import Tensor

from wuneng.errors import BackendError
from wuneng.ops.backend import HAS_TRITON, MissingPackageError, asked, candidates
from wuneng.ops.head_arguments import HeadInputs, HeadOptions, HeadWeights
from wuneng.ops.plain import are_plain
from wuneng.ops.state_head.native import is_available, run
from wuneng.ops.wkv7.checks import check_cu_seqlens, check_inputs, check_snapshots, check_state
from wuneng.ops.wkv7.chunked import wkv7_chunked
from wuneng.ops.wkv7.decays import CHUNK, allows_full_chunks, longest_chunk
from wuneng.ops.wkv7.fla import wkv7_fla
from wuneng.ops.wkv7.reference import Inputs, compute_dtype, wkv7_reference
from wuneng.ops.wkv7.snapshots import Snapshots
from wuneng.ops.wkv7.step import step, step_with_snapshots

#: What may stand in for :func:`wkv7`: called as it is, it returns what it returns.
Recurrence = Callable[..., Any]


@overload
def wkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    snapshots: None = None,
    backend: str | None = None,
    log_decay_bound: float | None = None,
) -> tuple[Tensor, Tensor]: ...


@overload
def wkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    snapshots: Snapshots,
    backend: str | None = None,
    log_decay_bound: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]: ...


def wkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    snapshots: Snapshots | None = None,
    backend: str | None = None,
    log_decay_bound: float | None = None,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:
    """RWKV-7's recurrence over whole sequences, from the state before to the state after.

        S_t = S_{t-1} diag(exp w_t) + (S_{t-1} a_t^T) b_t + v_t^T k_t        y_t = r_t S_t^T

    with a = -kappa and b = kappa * rate in RWKV-7 (RWKV-LM's ``rwkv_v7_numpy.py``). Differentiable
    once in every tensor argument but ``cu_seqlens`` and ``snapshots.position``; deterministic.

    Args:
        r: read vectors ``[B, T, S, N]``. All six inputs share this shape; they are floating and may
            differ in dtype. Arithmetic and state are float32, or float64 if any input is float64.
        w: **log** decay, at most 0 (not checked), -inf to forget everything. RWKV-7's is in
            [-0.6065, 0]. A step below -30 (float64: -300) may count as that, which keeps less than
            e^-30 of the state where nothing should be kept.
        k: keys that are written.
        v: values that are written.
        a: the direction that is removed, minus the normalised removal key.
        b: the direction it is put back on, removal key times in-context rate.
        initial_state: ``[B, S, N_value, N_key]`` float32 (float64 with float64 inputs), or
            ``[sequences, S, N, N]`` with ``cu_seqlens``. None is zero.
        cu_seqlens: int32 or int64 ``[sequences + 1]``, non-decreasing from 0 to T, for documents
            packed end to end in one row (B = 1). State never crosses a boundary.
        snapshots: also read earlier states, see :class:`Snapshots`.
        backend: ``reference``, ``chunked``, ``native``, ``triton`` or ``fla``; None lets
            :func:`wuneng.ops.using`, the environment or the device choose. ``native`` leaves
            snapshots, float64 and compiled graphs to ``chunked``; ``triton`` decays that its chunks
            cannot divide by.
        log_decay_bound: the caller's word that no w is below it. Without a bound the values are
            looked at before a chunk's length is chosen, for which a GPU is waited for.

    Returns:
        y ``[B, T, S, N]`` in v's dtype and the final state, shaped as ``initial_state``; with
        ``snapshots`` also the ring ``[B or sequences, n, S, N, N]`` to hand to the next call.

    Raises:
        ValueError: an argument's shape, dtype or device does not fit, or the backend is unknown or
            does not compute this; the message names the argument.
        ModuleNotFoundError: (also a ValueError) backend ``triton`` or ``fla`` without its package.
        RuntimeError: (also a ValueError) backend ``native`` where C kernels cannot be built.
    """
    inputs = (r, w, k, v, a, b)
    check_inputs(*inputs)
    sequences = check_cu_seqlens(cu_seqlens, v)
    check_state("initial_state", initial_state, inputs, sequences)
    if snapshots is not None:
        check_snapshots(snapshots, inputs, sequences)
    tensors = [*inputs, initial_state]
    if snapshots is not None:
        tensors += [snapshots.weights, snapshots.ring]
    steps = is_one_token(v, sequences) and not needs_grad(tensors)
    named = asked(backend)
    chosen = named or default(inputs, snapshots is not None, steps)
    if chosen == "native" and not _native_takes(snapshots, *inputs):
        chosen = "chunked"
    full = allows_full_chunks(log_decay_bound, compute_dtype(*inputs, initial_state))
    if chosen in ("triton", "fla") and not full and not _decays_mildly(w):
        chosen = "chunked"
    if chosen == "chunked" and steps:
        y, state, ring = _one_token(inputs, initial_state, snapshots)
    else:
        cuts = named is not None or "triton" in candidates("segments", v.device)
        bound = {"log_decay_bound": log_decay_bound} if chosen == "chunked" else {}
        y, state, ring = load(chosen, cuts=cuts)(
            *inputs,
            initial_state=initial_state,
            cu_seqlens=cu_seqlens,
            snapshots=snapshots,
            **bound,
        )
    if ring is None:
        return y, state
    return y, state, ring


def wkv7_step(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One token: the state advances and is read. Differentiable through plain autograd.

    Args:
        r, w, k, v, a, b: ``[B, S, N]`` of that token, as in :func:`wkv7` (w is the log decay).
        state: ``[B, S, N_value, N_key]`` float32 (float64 with float64 inputs); None is zero.

    Returns:
        y ``[B, S, N]`` in v's dtype and the new state; the old one is not overwritten.

    Raises:
        ValueError: an argument's shape, dtype or device does not fit; the message names it.
    """
    check_inputs(r, w, k, v, a, b, axes="[B, S, N]")
    check_state("state", state, (r, w, k, v, a, b), v.shape[0])
    if candidates("step", v.device) == ("reference",):
        token = (x.unsqueeze(1) for x in (r, w, k, v, a, b))
        y, new, _ = wkv7_reference(*token, initial_state=state)
        return y.squeeze(1), new
    return step(r, w, k, v, a, b, state=state)


def _decays_mildly(w: Tensor) -> bool:
    """Whether chunks of full length can divide by these decays; unknown in a compiled graph."""
    return not torch.compiler.is_compiling() and longest_chunk(w, torch.float32) == CHUNK


def is_one_token(v: Tensor, sequences: int) -> bool:
    """Whether every sequence has exactly one token."""
    return v.shape[1] == 1 and sequences == v.shape[0]


def needs_grad(tensors: list[Tensor | None]) -> bool:
    """Whether something is differentiated with respect to one of them."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _one_token(
    inputs: Inputs, state: Tensor | None, snapshots: Snapshots | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    r, w, k, v, a, b = (x[:, 0] for x in inputs)
    if snapshots is None:
        y, new = step(r, w, k, v, a, b, state=state)
        return y.unsqueeze(1), new, None
    y, new, ring = step_with_snapshots(r, w, k, v, a, b, state=state, snapshots=snapshots)
    return y.unsqueeze(1), new, ring


def _native_takes(snapshots: Snapshots | None, *inputs: Tensor) -> bool:
    """Not under a compiler, which cannot look into C and fuses the chunked form instead."""
    exact = compute_dtype(*inputs) == torch.float64
    plain = are_plain(*inputs) and not torch.compiler.is_compiling()
    return snapshots is None and not exact and plain


def default(inputs: tuple[Tensor, ...], has_snapshots: bool, steps: bool) -> str:
    """Where no backend is asked for: the first candidate of the device that takes these inputs.

    Tensor subclasses get the token loop, which is made of torch's operations alone.
    """
    if not are_plain(*inputs) and not torch.compiler.is_compiling():
        return "reference"
    v = inputs[3]
    names = candidates("step" if steps else "scan", v.device)
    if has_snapshots and "triton" not in candidates("snapshots", v.device):
        names = tuple(name for name in names if name != "triton")
    takes = {"native": is_available, "triton": takes_triton}
    fitting = (n for n in names if n not in takes or takes[n](v.shape[-1], *inputs))
    return next(fitting)


def takes_triton(size: int, *inputs: Tensor) -> bool:
    """Whether the Triton kernels exist and take these: plain CUDA tensors."""
    if not HAS_TRITON or not all(x.is_cuda for x in inputs):
        return False
    from wuneng.ops.wkv7 import triton_launch

    return size in triton_launch.HEAD_SIZES and all(x.dtype in triton_launch.DTYPES for x in inputs)


def load(backend: str, *, cuts: bool = True) -> Callable[..., tuple[Tensor, Tensor, Tensor | None]]:
    """The implementation of that name, called as the token loop is.

    Args:
        cuts: whether ``triton`` may cut long sequences in segments.

    Raises:
        MissingPackageError: backend ``triton`` without Triton.
    """
    if backend == "reference":
        return wkv7_reference
    if backend == "chunked":
        return wkv7_chunked
    if backend == "native":
        return _wkv7_native
    if backend == "fla":
        return wkv7_fla
    try:
        # Triton is optional and its import is slow: only a caller who runs it pays for it.
        from wuneng.ops.wkv7.triton_autograd import wkv7_triton
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] == "triton":
            raise MissingPackageError(
                "backend 'triton' needs the package triton, which is not installed; "
                "install it or use backend 'chunked'",
                name="triton",
            ) from error
        raise
    return wkv7_triton if cuts else partial(wkv7_triton, segments=1)


def _wkv7_native(
    *inputs: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    snapshots: None,
) -> tuple[Tensor, Tensor, None]:
    if not inputs[0].is_cpu:
        raise BackendError(
            f"backend 'native' needs CPU tensors, r is on {inputs[0].device}; use backend 'chunked'"
        )
    options = HeadOptions(inputs[0].shape[-2], inputs[0].shape[-1], raw=False)
    head = (HeadInputs(*inputs), HeadWeights(), options, initial_state, None)
    out = run(*head, cu_seqlens=cu_seqlens)
    return out.readout, out.state, None
