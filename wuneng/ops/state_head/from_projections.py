"""The WKV-7 recurrence from a state head's raw projections, as one operator.

    log w = -e^{-1/2} sigma(decay_logit)     k~, a, b = recurrence_inputs(k, source, rate_logit)
    S_t   = S_{t-1} (diag(e^{w_t}) + a_t^T b_t) + v_t^T k~_t         y_t = r_t S_t^T

(RWKV-7; RWKV-LM's ``rwkv_v7_numpy.py``.) Written out, w, k~, a and b and their gradients each go
through memory. The Triton kernels make them from the projections in registers instead; the other
backends run the parts one after another.

Legend: B batch, T tokens, S state heads, N head size.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from wuneng.ops.backend import asked, candidates
from wuneng.ops.state_head.recurrence_inputs import LOG_DECAY_SCALE, log_decay, recurrence_inputs
from wuneng.ops.wkv7 import interface
from wuneng.ops.wkv7.checks import check_cu_seqlens, check_state
from wuneng.ops.wkv7.interface import Recurrence, wkv7
from wuneng.ops.wkv7.snapshots import Snapshots


class ProjectedScan(NamedTuple):
    """What :func:`wkv7_from_projections` returns.

    Attributes:
        y: what the state read, ``[B, T, S, N]`` in v's dtype.
        key: k~, the replacement key, ``[B, T, S, N]`` in k's dtype: the bonus needs it.
        state: the final state ``[B or sequences, S, N_value, N_key]`` float32 (or float64).
        ring: with snapshots, the ring to hand to the next call; else None.
    """

    y: Tensor
    key: Tensor
    state: Tensor
    ring: Tensor | None


def wkv7_from_projections(
    r: Tensor,
    decay_logit: Tensor,
    k: Tensor,
    v: Tensor,
    rate_logit: Tensor,
    source: Tensor | None,
    k_k: Tensor,
    k_a: Tensor,
    *,
    a_max: float,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    snapshots: Snapshots | None = None,
    recurrence: Recurrence | None = None,
    backend: str | None = None,
) -> ProjectedScan:
    """The recurrence of S state heads over whole sequences, from their projections.

    Without token shift before it and readout after it: :func:`wuneng.ops.state_head` is the whole.

    Differentiable once in every tensor but ``cu_seqlens`` and ``snapshots.position``;
    deterministic.

    Args:
        r, k, v: receptance, keys and values ``[B, T, S, N]``, floating; the six projections share
            this shape and may differ in dtype.
        decay_logit: of the decay, log w = -e^{-1/2} sigma(decay_logit).
        rate_logit: of the in-context learning rate.
        source: what the removal key is made of; None, or k itself, for k. A tensor that is only a
            view of k counts as one of its own: right, but read twice.
        k_k, k_a: per-channel weights ``[S, N]`` of the removal and the replacement key.
        a_max: upper end of the in-context learning rate, 1 or 2.
        initial_state, cu_seqlens, snapshots, backend: as :func:`wuneng.ops.wkv7`.
        recurrence: runs in its place, called as it is; None is itself.

    Returns:
        :class:`ProjectedScan`.

    Raises:
        ValueError: an argument's shape, dtype or device does not fit, or the backend is unknown;
            the message names the argument.
        ModuleNotFoundError: (also a ValueError) backend ``triton`` or ``fla`` without its package.
    """
    own_source = k if source is None else source
    projections = (r, decay_logit, k, v, rate_logit, own_source)
    _check(projections, k_k, k_a)
    named = asked(backend)
    sequences = check_cu_seqlens(cu_seqlens, v)
    options = {"initial_state": initial_state, "cu_seqlens": cu_seqlens}
    fuses = named == "triton" or (
        named is None
        and "triton" in candidates("projections", v.device)
        and interface.takes_triton(v.shape[-1], *projections)
    )
    if fuses and snapshots is None and recurrence is None:
        check_state("initial_state", initial_state, projections, sequences)
        fused = _fused(projections, k_k, k_a, a_max, sequences, **options)
        if fused is not None:
            return fused
    run = recurrence or wkv7
    return _in_parts(projections, k_k, k_a, a_max, snapshots, named, run, **options)


def _in_parts(
    projections: tuple[Tensor, ...],
    k_k: Tensor,
    k_a: Tensor,
    a_max: float,
    snapshots: Snapshots | None,
    backend: str | None,
    run: Recurrence,
    *,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> ProjectedScan:
    """The operators one after another, with any backend of :func:`wuneng.ops.wkv7`."""
    r, decay_logit, k, v, rate_logit, source = projections
    key, a, b = recurrence_inputs(k, source, rate_logit, k_k, k_a, a_max, backend=backend)
    inputs = (r, log_decay(decay_logit), key, v, a, b)
    if snapshots is None:
        y, state = run(
            *inputs,
            initial_state=initial_state,
            cu_seqlens=cu_seqlens,
            backend=backend,
            log_decay_bound=LOG_DECAY_SCALE,
        )
        return ProjectedScan(y, key, state, None)
    y, state, ring = run(
        *inputs,
        initial_state=initial_state,
        cu_seqlens=cu_seqlens,
        snapshots=snapshots,
        backend=backend,
        log_decay_bound=LOG_DECAY_SCALE,
    )
    return ProjectedScan(y, key, state, ring)


def _fused(
    projections: tuple[Tensor, ...],
    k_k: Tensor,
    k_a: Tensor,
    a_max: float,
    sequences: int,
    *,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> ProjectedScan | None:
    """The kernels that read projections; None where they do not take these arguments.

    One token without gradients is left to the one-token step of :func:`wuneng.ops.wkv7`.
    """
    interface.load("triton")  # names the missing package
    from wuneng.ops.wkv7.triton_from_projections import fits, wkv7_from_projections_triton

    r, decay_logit, k, v, rate_logit, source = projections
    weights = (k_k, k_a)
    differentiated = interface.needs_grad([*projections, *weights, initial_state])
    if not differentiated and interface.is_one_token(v, sequences):
        return None
    if not fits(v, (*projections, *weights)):
        return None
    y, key, state = wkv7_from_projections_triton(
        *(r, decay_logit, k, v, rate_logit, None if source is k else source, *weights),
        a_max=a_max,
        initial_state=initial_state,
        cu_seqlens=cu_seqlens,
    )
    return ProjectedScan(y, key, state, None)


def _check(projections: tuple[Tensor, ...], k_k: Tensor, k_a: Tensor) -> None:
    v = projections[3]
    if v.dim() != 4:
        raise ValueError(f"v must be [B, T, S, N], got shape {list(v.shape)}")
    shape, weight_shape = list(v.shape), list(v.shape[-2:])
    names = ("r", "decay_logit", "k", "v", "rate_logit", "source")
    expected = [*zip(names, projections, [shape] * 6, strict=True)]
    expected += [("k_k", k_k, weight_shape), ("k_a", k_a, weight_shape)]
    for name, x, wanted in expected:
        if list(x.shape) != wanted:
            raise ValueError(f"{name} must have shape {wanted}, got {list(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {x.dtype}")
        if x.device != v.device:
            raise ValueError(f"{name} must be on v's device {v.device}, got {x.device}")
