"""The scans that read a layer's raw projections, as torch operators.

wkv7_from_projections_triton                         what ``state_head.from_projections`` calls
wuneng::wkv7_from_projections_triton_forward, _backward    wkv7's kernels with RAW, for torch

Only the projections are kept for backward; w, k~, a and b, in and out, exist in registers alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wuneng.ops.wkv7 import triton_launch
from wuneng.ops.wkv7.triton_launch import (
    CHUNK,
    DTYPES,
    HEAD_SIZES,
    forward_launch,
    processors,
    segment_length,
)
from wuneng.ops.wkv7.triton_projection_scans import projection_scan, projection_scan_back
from wuneng.ops.wkv7.triton_tables import boundary_rows, sequence_table

#: r, decay_logit, k, v and rate_logit; source, which may be absent; k_k and k_a.
Projections = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor]


def fits(v: Tensor, others: tuple[Tensor, ...], sequences: int) -> bool:
    """Whether :func:`wkv7_from_projections_triton` takes these: size, dtypes, device, one pass.

    Where heads are so few that wkv7 would cut sequences into segments it does not: the passes that
    carry a segment's state read a and b as tensors. A traced graph cannot ask the device how many
    processors it has, and takes the one pass.
    """
    tokens, heads, size = v.shape[1:]
    if size not in HEAD_SIZES or any(x.dtype not in DTYPES for x in (v, *others)):
        return False
    if v.device.type == "cpu" and not triton_launch.INTERPRETING:
        return False
    programs = sequences * heads
    if torch.compiler.is_compiling() or programs == 0:
        return True
    count = processors(v.device)
    values = forward_launch(v.dtype, size, CHUNK, programs, count).values
    return segment_length(0, tokens, CHUNK, programs * (size // values), programs, count) == 0


def wkv7_from_projections_triton(
    *tensors: *Projections,
    a_max: float,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    chunk: int = 0,
    values: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments as :func:`wuneng.ops.wkv7_from_projections`; ``source`` None is k.

    Args:
        chunk: tokens per chunk, 16, 32 or 64; 0 chooses.
        values: value channels per program; 0 chooses by the number of heads.

    Returns:
        y ``[B, T, S, N]`` in v's dtype, k~ ``[B, T, S, N]`` in k's, and the final state ``[B or
        sequences, S, N, N]`` float32.
    """
    keeps_states = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (*tensors, initial_state)
    )
    chunk = chunk or CHUNK
    y, key, final_state, _ = torch.ops.wuneng.wkv7_from_projections_triton_forward(
        *tensors, initial_state, cu_seqlens, a_max, chunk, values, keeps_states
    )
    return y, key, final_state


#: What both operators are given first, in torch's language.
_GIVEN = (
    "Tensor r, Tensor decay_logit, Tensor k, Tensor v, Tensor rate_logit, Tensor? source, "
    "Tensor k_k, Tensor k_a"
)


@torch.library.custom_op(
    "wuneng::wkv7_from_projections_triton_forward",
    mutates_args=(),
    schema=f"({_GIVEN}, Tensor? initial_state, Tensor? cu_seqlens, float a_max, int chunk, "
    "int values, bool keeps_states) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _forward(*given: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (k, v), (initial_state, cu_seqlens) = given[2:4], given[8:10]
    a_max, chunk, values, keeps_states = given[10:]
    outputs = _forward_outputs(k, v, cu_seqlens, chunk, keeps_states)
    y, key, final_state, states = outputs
    if final_state.numel():
        table = sequence_table(v.shape[0], v.shape[1], cu_seqlens, None, chunk)
        kept = states if keeps_states else None
        projections, weights = _as_the_kernels_do(*given[:8])
        written = (y, key, final_state)
        projection_scan(
            projections, weights, a_max, initial_state, table, written, kept, chunk, values
        )
    return outputs


def _as_the_kernels_do(
    *tensors: *Projections,
) -> tuple[tuple[Tensor | None, ...], tuple[Tensor, Tensor]]:
    """The projections in the order of r, w, k, v, a, b, and the weights."""
    r, decay_logit, k, v, rate_logit, source, k_k, k_a = tensors
    return (r, decay_logit, k, v, source, rate_logit), (k_k, k_a)


def _forward_outputs(
    k: Tensor, v: Tensor, cu_seqlens: Tensor | None, chunk: int, keeps_states: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, tokens, heads, size = v.shape
    packed = cu_seqlens is not None
    sequences = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    rows = boundary_rows(tokens, chunk, sequences, packed, False) if keeps_states else 0
    # With a table the rows are an upper bound; those that no sequence fills must not differ from
    # run to run.
    allocate = v.new_zeros if packed else v.new_empty
    return (
        torch.empty_like(v, memory_format=torch.contiguous_format),
        torch.empty_like(k, memory_format=torch.contiguous_format),
        v.new_empty(sequences, heads, size, size, dtype=torch.float32),
        allocate(rows, heads, size, size),
    )


@_forward.register_fake
def _(*given: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    cu_seqlens, _, chunk, _, keeps_states = given[9:]
    return _forward_outputs(given[2], given[3], cu_seqlens, chunk, keeps_states)


@torch.library.custom_op(
    "wuneng::wkv7_from_projections_triton_backward",
    mutates_args=(),
    schema=f"({_GIVEN}, Tensor states, Tensor? cu_seqlens, Tensor? dy, Tensor? d_key, "
    "Tensor? d_final_state, float a_max, int chunk, int values) -> Tensor[]",
)
def _backward(*given: Any) -> list[Tensor]:
    v, (states, cu_seqlens, dy, d_key, d_final_state) = given[3], given[8:13]
    a_max, chunk, values = given[13:]
    gradients = _backward_outputs(given[:8], cu_seqlens)
    dr, dw, dk, dv, d_rate, *d_source, d_k_k, d_k_a, d_initial_state = gradients
    table = sequence_table(v.shape[0], v.shape[1], cu_seqlens, None, chunk)
    projection_scan_back(
        *_as_the_kernels_do(*given[:8]),
        a_max,
        states,
        table,
        (torch.zeros_like(v) if dy is None else dy, d_key, d_final_state),
        [dr, dw, dk, dv, d_source[0] if d_source else None, d_rate],
        (d_k_k, d_k_a),
        d_initial_state,
        chunk,
        values,
    )
    return gradients


def _backward_outputs(inputs: Projections, cu_seqlens: Tensor | None) -> list[Tensor]:
    v = inputs[3]
    heads, size = v.shape[-2:]
    sequences = v.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return [
        *(
            torch.empty_like(x, memory_format=torch.contiguous_format)
            for x in inputs
            if x is not None
        ),
        v.new_empty(sequences, heads, size, size, dtype=torch.float32),
    ]


@_backward.register_fake
def _(*given: Any) -> list[Tensor]:
    return _backward_outputs(given[:8], given[9])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, initial_state, cu_seqlens, a_max, chunk, values, keeps_states = inputs
    if not keeps_states:
        raise RuntimeError(
            "wkv7_from_projections_triton_forward needs keeps_states=True to be differentiated"
        )
    ctx.save_for_backward(*tensors, output[3], cu_seqlens)
    ctx.set_materialize_grads(False)
    ctx.choices, ctx.has_initial_state = (a_max, chunk, values), initial_state is not None


def _differentiate(
    ctx: Any,
    dy: Tensor | None,
    d_key: Tensor | None,
    d_final_state: Tensor | None,
    d_states: Tensor | None,
) -> tuple[Tensor | None, ...]:
    source = ctx.saved_tensors[5]
    gradients: list[Tensor | None] = list(
        torch.ops.wuneng.wkv7_from_projections_triton_backward(
            *ctx.saved_tensors, dy, d_key, d_final_state, *ctx.choices
        )
    )
    if source is None:
        gradients.insert(5, None)
    if not ctx.has_initial_state:
        gradients[-1] = None
    others = ("cu_seqlens", "a_max", "chunk", "values", "keeps_states")
    return (*gradients, *(None for _ in others))


_forward.register_autograd(_differentiate, setup_context=_setup_context)
