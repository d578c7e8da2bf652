"""WKV-7 in chunks, plain torch: the CPU path, and the fallback on any device.

Both passes are registered as torch operators with shape rules, so that ``torch.compile`` takes a
module that calls them as one graph. The backward has no gradient of its own: a second
differentiation raises.

Chunks are as long as the decays allow (:mod:`wuneng.ops.wkv7.decays`). A compiled graph cannot look
at them: there the operator chooses inside, with ``chunk`` 0, and its backward computes the states
between the chunks once more instead of keeping a number of them that nobody knows in advance.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from wuneng.ops.wkv7 import snapshot_table
from wuneng.ops.wkv7.chunk_passes import backward_pass, forward_pass, prepare
from wuneng.ops.wkv7.decays import CHUNK, allows_full_chunks, longest_chunk, lowest_log_decay
from wuneng.ops.wkv7.packing import max_state_slots
from wuneng.ops.wkv7.reference import INPUTS_SCHEMA, Inputs, compute_dtype
from wuneng.ops.wkv7.snapshots import Snapshots


def wkv7_chunked(
    *inputs: *Inputs,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    snapshots: Snapshots | None = None,
    log_decay_bound: float | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The recurrence in chunks; arguments as :func:`wuneng.ops.wkv7`, unchecked, results as
    :func:`wuneng.ops.wkv7.reference.wkv7_reference`.
    """
    r, w, k, v, a, b = inputs
    weights = ring = position = None
    every = 0
    if snapshots is not None:
        weights, ring, position = snapshots.weights, snapshots.ring, snapshots.position
        every = snapshots.every
    sequences = v.shape[0] if cu_seqlens is None else cu_seqlens.numel() - 1
    chunk = choose_chunk(v.shape[0] * v.shape[1], sequences, every)
    dtype = compute_dtype(*inputs, initial_state)
    if not allows_full_chunks(log_decay_bound, dtype):
        w = w.clamp(min=lowest_log_decay(dtype))
        chunk = 0 if torch.compiler.is_compiling() else min(chunk, longest_chunk(w, dtype))
    tensors = (r, w, k, v, a, b, initial_state, weights, ring)
    keep = (
        chunk > 0
        and torch.is_grad_enabled()
        and any(t is not None and t.requires_grad for t in tensors)
    )
    y, final, final_ring, _, _ = _forward(
        r, w, k, v, a, b, initial_state, cu_seqlens, weights, ring, position, every, chunk, keep
    )
    return y, final, None if snapshots is None else final_ring


def choose_chunk(tokens: int, sequences: int, every: int) -> int:
    """C, a power of two: 32, less where sequences are short or ``every`` is not a multiple."""
    chunk = 16 if every % CHUNK else CHUNK
    mean = -(-tokens // max(sequences, 1))
    while chunk > 8 and mean <= chunk // 2:
        chunk //= 2
    return chunk


def _chunk_by_values(
    inputs: list[Tensor], initial_state: Tensor | None, cu_seqlens: Tensor | None, every: int
) -> int:
    """C for an operator that was called without: as long as the decays allow."""
    w, v = inputs[1], inputs[3]
    sequences = v.shape[0] if cu_seqlens is None else cu_seqlens.numel() - 1
    longest = longest_chunk(w, compute_dtype(*inputs, initial_state))
    return min(longest, choose_chunk(v.shape[0] * v.shape[1], sequences, every))


class _Given(NamedTuple):
    """What the forward operator is given: the inputs, what is beside them, and choices."""

    r: Tensor
    w: Tensor
    k: Tensor
    v: Tensor
    a: Tensor
    b: Tensor
    initial_state: Tensor | None
    cu_seqlens: Tensor | None
    weights: Tensor | None
    ring: Tensor | None
    position: Tensor | None
    every: int
    chunk: int
    keep: bool

    def dtype(self) -> torch.dtype:
        """Of the state and of all arithmetic."""
        return compute_dtype(*self[:6], self.initial_state)


_BESIDE = (
    "Tensor? initial_state, Tensor? cu_seqlens, Tensor? weights, Tensor? ring, Tensor? position"
)


def _outputs(given: _Given) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Empty y, final state, final ring, kept states and snapshot table: shapes from shapes alone,
    as a compiled graph needs them."""
    v, cu_seqlens, weights, dtype = given.v, given.cu_seqlens, given.weights, given.dtype()
    batch, tokens, heads, size = v.shape
    sequences = batch if cu_seqlens is None else cu_seqlens.numel() - 1
    aligned = cu_seqlens is None and given.position is None
    slots = max_state_slots(batch * tokens, sequences, given.chunk, aligned) if given.keep else 0
    count, table_slots = 0, 0
    if weights is not None:
        count = weights.shape[-1] - 1
        table_slots = snapshot_table.max_slots(sequences, count, batch * tokens, given.every)

    def states(*lead: int) -> Tensor:
        return v.new_empty(*lead, heads, size, size, dtype=dtype)

    y = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    return y, states(sequences), states(sequences, count), states(slots), states(table_slots)


@torch.library.custom_op(
    "wuneng::wkv7_chunked",
    mutates_args=(),
    schema=f"({INPUTS_SCHEMA}, {_BESIDE}, SymInt every, SymInt chunk, bool keep)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    given = _Given(*arguments)
    inputs, (initial_state, cu_seqlens, weights, ring, position, every) = given[:6], given[6:12]
    with torch.autocast(given.v.device.type, enabled=False):
        chunk = given.chunk or _chunk_by_values(list(inputs), initial_state, cu_seqlens, every)
        given = given._replace(chunk=chunk)
        call = prepare(list(inputs), initial_state, cu_seqlens, weights, position, every, chunk)
        y, final, final_ring, kept, table = _outputs(given)
        if call.snapshots is not None:
            snapshot_table.start_table(call.snapshots, table, ring, final.shape[0])
        initial = torch.zeros_like(final) if initial_state is None else initial_state
        rows = kept.flatten(0, 1) if given.keep else None
        forward_pass(call, initial, y, final, rows, table)
        if call.snapshots is not None:
            final_ring = snapshot_table.final_ring(call.snapshots, table, final)
    return y, final, final_ring, kept, table


@_forward.register_fake
def _forward_shapes(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _outputs(_Given(*arguments))


@torch.library.custom_op(
    "wuneng::wkv7_chunked_backward",
    mutates_args=(),
    schema=f"(Tensor d_y, Tensor? d_final, Tensor? d_ring, Tensor[] inputs, {_BESIDE}, "
    "Tensor final, Tensor kept, Tensor table, SymInt every, SymInt chunk) -> Tensor[]",
)
def _backward(*arguments: Any) -> list[Tensor]:
    """Gradients of r, w, k, v, a, b, the initial state, the weights and the ring; the last two are
    empty without snapshots."""
    d_y, d_final, d_ring, inputs, *beside, final, kept, table, every, chunk = arguments
    initial_state, cu_seqlens, weights, ring, position = beside
    with torch.autocast(d_y.device.type, enabled=False):
        if not chunk:
            chunk = _chunk_by_values(inputs, initial_state, cu_seqlens, every)
            _, _, _, kept, table = _forward(*inputs, *beside, every, chunk, True)
        call = prepare(inputs, initial_state, cu_seqlens, weights, position, every, chunk)
        gradients = _gradients(inputs, final, weights, ring)
        d_final = torch.zeros_like(final) if d_final is None else d_final.clone()
        d_table = table
        if call.snapshots is not None:
            d_table = snapshot_table.final_ring_gradient(call.snapshots, d_ring, d_final, table)
        backward_pass(
            call,
            d_y,
            d_final,
            final,
            kept.flatten(0, 1),
            table,
            d_table,
            gradients[:6],
            gradients[6],
            gradients[7],
        )
        if ring is not None:
            gradients[8].copy_(d_table[1 : 1 + ring.shape[0] * ring.shape[1]].view(ring.shape))
    return gradients


def _gradients(
    inputs: list[Tensor], final: Tensor, weights: Tensor | None, ring: Tensor | None
) -> list[Tensor]:
    shaped_as = [*inputs, final, final[:0] if weights is None else weights]
    shaped_as.append(final[:0] if ring is None else ring)
    return [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in shaped_as]


@_backward.register_fake
def _backward_shapes(*arguments: Any) -> list[Tensor]:
    inputs, weights, ring, final = arguments[3], *arguments[6:8], arguments[9]
    return _gradients(inputs, final, weights, ring)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, every, chunk, _ = inputs
    _, final, _, kept, table = output
    ctx.every, ctx.chunk = every, chunk
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(kept, table)
    ctx.save_for_backward(*tensors, final, kept, table)


def _differentiate(ctx: Any, *d_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
    d_y, d_final, d_ring, _, _ = d_outputs
    *saved, final, kept, table = ctx.saved_tensors
    inputs, others = list(saved[:6]), saved[6:]
    v, initial_state, weights, ring = inputs[3], others[0], others[2], others[3]
    if d_y is None:
        d_y = torch.zeros(v.shape, dtype=v.dtype, device=v.device)
    *d_inputs, d_initial, d_weights, d_incoming = _backward(
        d_y, d_final, d_ring, inputs, *others, final, kept, table, ctx.every, ctx.chunk
    )
    return (
        *d_inputs,
        None if initial_state is None else d_initial,
        None,
        None if weights is None else d_weights,
        None if ring is None else d_incoming,
        *(None,) * 4,
    )


def _refuse(ctx: Any, *d_outputs: Any) -> None:
    raise RuntimeError(
        "wkv7 can be differentiated once: the gradient of its gradient is not implemented "
        "(backend 'reference' has it)"
    )


torch.library.register_autograd("wuneng::wkv7_chunked", _differentiate, setup_context=_remember)
torch.library.register_autograd("wuneng::wkv7_chunked_backward", _refuse)
