"""Launches of the two scans on raw projections: wkv7's kernels with RAW."""

from __future__ import annotations

import torch
from torch import Tensor

from wuneng.ops.wkv7.triton_backward import wkv7_backward_kernel
from wuneng.ops.wkv7.triton_forward import wkv7_forward_kernel
from wuneng.ops.wkv7.triton_launch import (
    backward_launch,
    forward_launch,
    on_device,
    precision,
    processors,
)
from wuneng.ops.wkv7.triton_tables import rows_per_sequence


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
    tokens, heads, size = y.shape[1:]
    programs = final_state.shape[0] * heads
    launch = forward_launch(y.dtype, size, chunk, programs, processors(y.device))
    values = values or launch.values
    k_k, k_a = _contiguous(*weights)
    with on_device(y):
        wkv7_forward_kernel[(programs * (size // values),)](
            *_contiguous(*projections, initial_state),
            table,
            y,
            final_state,
            states,
            tokens,
            rows_per_sequence(tokens, chunk),
            heads,
            SIZE=size,
            VALUES=values,
            CHUNK=chunk,
            HAS_INITIAL=initial_state is not None,
            HAS_TABLE=table is not None,
            STORE_BOUNDARIES=states is not None,
            k_k=k_k,
            k_a=k_a,
            replacement_key=key,
            RAW=True,
            SHARED=projections[4] is None,
            A_MAX=a_max,
            num_warps=launch.warps,
            num_stages=launch.stages,
            **precision(y.dtype),
        )


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
    tokens, heads, size = dy.shape[1:]
    programs = d_initial_state.shape[0] * heads
    launch = backward_launch(dy.dtype, size, chunk, programs, processors(dy.device))
    values = values or launch.values
    blocks = size // values
    parts = list(gradients)
    if blocks > 1:
        # dv's rows belong to one block each; the other gradients are sums over blocks.
        parts = [
            x
            if x is None or x is gradients[3]
            else x.new_empty(blocks, *x.shape, dtype=torch.float32)
            for x in gradients
        ]
    d_weights = _weight_parts(dy, table, chunk, blocks)
    k_k, k_a = _contiguous(*weights)
    with on_device(dy):
        wkv7_backward_kernel[(programs * blocks,)](
            *_contiguous(*projections, states),
            table,
            dy,
            d_final_state,
            None,
            *parts,
            d_initial_state,
            tokens,
            rows_per_sequence(tokens, chunk),
            heads,
            dy.numel(),
            SIZE=size,
            VALUES=values,
            CHUNK=chunk,
            HAS_FINAL=d_final_state is not None,
            HAS_TABLE=table is not None,
            HAS_BOUNDARIES=False,
            k_k=k_k,
            k_a=k_a,
            d_replacement_key=d_key,
            d_weights=d_weights,
            RAW=True,
            SHARED=projections[4] is None,
            A_MAX=a_max,
            HAS_KEY_GRADIENT=d_key is not None,
            num_warps=launch.warps,
            num_stages=launch.stages,
            **precision(dy.dtype),
        )
    # Fixed orders of summation: atomics would make gradients differ from run to run.
    for part, gradient in zip(parts, gradients, strict=True):
        if part is not None and gradient is not None and part is not gradient:
            gradient.copy_(part.sum(0))
    totals = d_weights.sum((0, 2)).unbind(1)
    for total, gradient in zip(totals, weight_gradients, strict=True):
        gradient.copy_(total)


def _weight_parts(dy: Tensor, table: Tensor | None, chunk: int, blocks: int) -> Tensor:
    """Where every chunk puts its gradients of k_k and k_a, float32 [chunks, heads, blocks, 2, N].

    The number of chunks is only a bound where sequences have a table; the rest must be zero.
    """
    batch, tokens, heads, size = dy.shape
    shape = (heads, blocks, 2, size)
    if table is None:
        chunks = batch * (rows_per_sequence(tokens, chunk) - 1)
        return dy.new_empty(chunks, *shape, dtype=torch.float32)
    return dy.new_zeros(tokens // chunk + table.shape[0], *shape, dtype=torch.float32)
