"""Launches of the two scans on raw projections: wkv7's kernels with RAW."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wuneng.ops.wkv7.triton_passes import scan, scan_back, value_blocks


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if x is None else x.contiguous() for x in tensors]


def projection_scan(
    projections: tuple[Tensor | None, ...],
    weights: tuple[Tensor, Tensor],
    a_max: float,
    initial_state: Tensor | None,
    table: Tensor | None,
    outputs: tuple[Tensor, Tensor, Tensor],
    states: Tensor | None,
    chunk: int,
    values: int,
) -> None:
    """Launch the forward kernel, a program per (sequence, head, value block).

    ``projections`` in the kernel's order, r, decay_logit, k, v, source (None: k), rate_logit;
    ``weights`` k_k and k_a; ``outputs`` y, k~ and the final state, written.
    """
    y, key, final_state = outputs
    k_k, k_a = _contiguous(*weights)
    *inputs, entering = _contiguous(*projections, initial_state)
    scan(
        *(tuple(inputs), entering, table, y, final_state, states, chunk, values),
        k_k=k_k,
        k_a=k_a,
        replacement_key=key,
        **_constants(projections, a_max),
    )


def _constants(projections: tuple[Tensor | None, ...], a_max: float) -> dict[str, Any]:
    return {"RAW": True, "SHARED": projections[4] is None, "A_MAX": a_max}


def projection_scan_back(
    projections: tuple[Tensor | None, ...],
    weights: tuple[Tensor, Tensor],
    a_max: float,
    states: Tensor,
    table: Tensor | None,
    given: tuple[Tensor, Tensor | None, Tensor | None],
    gradients: list[Tensor | None],
    weight_gradients: tuple[Tensor, Tensor],
    d_initial_state: Tensor,
    chunk: int,
    values: int,
) -> None:
    """Launch the backward kernel on what :func:`projection_scan` took.

    ``given`` are dy, the gradient of k~ and d_final_state; ``gradients`` of the projections, in
    their order, and ``weight_gradients`` of k_k and k_a, written.
    """
    dy, d_key, d_final_state = _contiguous(*given)
    assert dy is not None
    # A fixed order of summation, as of the other parts. Rows where no chunk begins stay zero.
    shape = (states.shape[0], dy.shape[2], value_blocks(dy, chunk, values), 2, dy.shape[3])
    d_weights = dy.new_zeros(shape, dtype=torch.float32)
    k_k, k_a = _contiguous(*weights)
    scan_back(
        tuple(_contiguous(*projections)),
        states.contiguous(),
        (table, dy, d_final_state, None),
        *(gradients, d_initial_state, chunk, values),
        folded={
            "d_replacement_key": d_key,
            "d_weights": d_weights,
            "HAS_KEY_GRADIENT": d_key is not None,
        },
        k_k=k_k,
        k_a=k_a,
        **_constants(projections, a_max),
    )
    totals = d_weights.sum((0, 2)).unbind(1)
    for total, gradient in zip(totals, weight_gradients, strict=True):
        gradient.copy_(total)
