"""The recurrence from a layer's raw projections, as torch operators.

wkv7_from_projections_triton                         what ``state_head.from_projections`` calls
wuneng::wkv7_from_projections_triton_forward, _backward    kernels around wkv7's, for torch

Only the projections and the states are kept for backward: w, k~, a and b are made again there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wuneng.ops.wkv7 import triton_launch
from wuneng.ops.wkv7.triton_autograd import backward_scan, forward_scan
from wuneng.ops.wkv7.triton_launch import CHUNK, DTYPES, HEAD_SIZES
from wuneng.ops.wkv7.triton_projections import (
    Projections,
    projection_gradients_triton,
    recurrence_inputs_triton,
)
from wuneng.ops.wkv7.triton_tables import boundary_rows


def fits(v: Tensor, others: tuple[Tensor, ...]) -> bool:
    """Whether :func:`wkv7_from_projections_triton` takes these: head size, dtypes, device."""
    if v.shape[-1] not in HEAD_SIZES or any(x.dtype not in DTYPES for x in (v, *others)):
        return False
    return v.device.type != "cpu" or triton_launch.INTERPRETING


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
    (r, v), (initial_state, cu_seqlens) = (given[0], given[3]), given[8:10]
    a_max, chunk, values, keeps_states = given[10:]
    w, key, a, b = recurrence_inputs_triton(*given[:8], a_max=a_max)
    y, final_state, states = forward_scan(
        *(r, w, key, v, a, b, initial_state, cu_seqlens, None, chunk, values, keeps_states, 0)
    )
    return y, key, final_state, states


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
    (r, v), (states, cu_seqlens, dy, d_key, d_final_state) = (given[0], given[3]), given[8:13]
    a_max, chunk, values = given[13:]
    w, key, a, b = recurrence_inputs_triton(*given[:8], a_max=a_max)
    dr, *of_inputs, d_initial_state = backward_scan(
        *(r, w, key, v, a, b, states, cu_seqlens, None, dy, d_final_state, None),
        *(chunk, values, 0),
    )
    dw, d_replaced, dv, da, db = of_inputs
    d_decay, dk, d_rate, *d_source, d_k_k, d_k_a = _unscanned_outputs(given[:8])
    projection_gradients_triton(
        *given[:8],
        a_max=a_max,
        given=(dw, d_replaced, da, db),
        d_key_read=d_key,
        gradients=(d_decay, dk, d_source[0] if d_source else None, d_rate),
        weight_gradients=(d_k_k, d_k_a),
    )
    return [dr, d_decay, dk, dv, d_rate, *d_source, d_k_k, d_k_a, d_initial_state]


def _unscanned_outputs(inputs: Projections) -> list[Tensor]:
    """Memory for the gradients that the scan does not give, in the order of the inputs."""
    _, decay_logit, k, _, *others = inputs
    return [
        torch.empty_like(x, memory_format=torch.contiguous_format)
        for x in (decay_logit, k, *others)
        if x is not None
    ]


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
