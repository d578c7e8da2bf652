"""Snapshot reads from the states the forward kernel stored, as torch operators.

The kernel keeps the state at every chunk's start, and ``every`` is a multiple of the chunk, so each
snapshot is one of those rows (or, for a continued sequence, one of the ring's). The gradient of the
stored states enters the backward kernel's scan at their chunks. ``snapshot_products`` computes the
same in plain torch.

read_snapshots         what wkv7_triton calls
wuneng::wkv7_snapshot_read, _backward      the kernels' launches
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wuneng.ops.wkv7.snapshot_products import KeptStates, StoredReads, sequence_extents
from wuneng.ops.wkv7.triton_launch import Launch, on_device, precision, snapshot_launch
from wuneng.ops.wkv7.triton_snapshot_kernels import (
    snapshot_gradients_kernel,
    snapshot_read_kernel,
    snapshot_state_gradients_kernel,
)
from wuneng.ops.wkv7.triton_tables import max_segments, places, rows_per_sequence


def read_snapshots(*given: *StoredReads) -> tuple[Tensor, Tensor]:
    """As :func:`read_snapshots_in_products`, by the kernels; states in y's dtype."""
    r, y, states, snapshots, cu_seqlens, chunk = given
    return torch.ops.wuneng.wkv7_snapshot_read(
        *(r, y, states, snapshots.weights, snapshots.ring, snapshots.position, cu_seqlens),
        *(snapshots.every, chunk),
    )


@dataclass(frozen=True)
class _Tables:
    """What the kernels need to find tiles and kept states.

    Attributes:
        extents: int64 ``[sequences, 4]``: begin, end, tokens seen before, first row of states.
        tiles, kept: int64 ``[places, 2]``: sequence, and index among its own.
        All three are None where sequences begin here and have equal lengths.
        tile_places, kept_places: how many there are at most, of all sequences.
        tiles_each, kept_each: without tables, how many a sequence has.
    """

    extents: Tensor | None
    tiles: Tensor | None
    kept: Tensor | None
    tile_places: int
    kept_places: int
    tiles_each: int
    kept_each: int


def _tables(
    r: Tensor,
    position: Tensor | None,
    cu_seqlens: Tensor | None,
    tile: int,
    every: int,
    chunk: int,
    carried: int,
) -> _Tables:
    """``carried`` states a sequence came in the ring. Nothing here waits for the device."""
    batch, tokens = r.shape[:2]
    if cu_seqlens is None and position is None:
        tiles, kept = -(-tokens // tile), tokens // every
        return _Tables(None, None, None, batch * tiles, batch * kept, tiles, kept)
    extents = sequence_extents(r, cu_seqlens, position, chunk)
    begin, length, seen = extents.begin, extents.length, extents.seen
    sequences, has_position = begin.shape[0], position is not None
    tile_places = max_segments(batch * tokens, sequences, tile, tile, has_position)
    crossed = (batch * tokens + sequences * (every - 1) * int(has_position)) // every
    kept_places = crossed + sequences * carried
    used = (seen % tile + length + tile - 1) // tile
    own = (seen + length) // every - seen // every + carried
    return _Tables(
        torch.stack([begin, begin + length, seen, extents.first_row], 1),
        torch.stack(places(used, tile_places), 1),
        torch.stack(places(own, kept_places), 1),
        *(tile_places, kept_places, 0, 0),
    )


#: What both operators are given first, in torch's language.
_GIVEN = (
    "Tensor r, Tensor y, Tensor states, Tensor weights, Tensor? ring, Tensor? position, "
    "Tensor? cu_seqlens"
)


@torch.library.custom_op(
    "wuneng::wkv7_snapshot_read",
    mutates_args=(),
    schema=f"({_GIVEN}, SymInt every, SymInt chunk) -> (Tensor, Tensor)",
)
def _read(*given: Any) -> tuple[Tensor, Tensor]:
    r, y, states, weights, ring, position, cu_seqlens, every, chunk = given
    mixed = torch.empty_like(y, memory_format=torch.contiguous_format)
    (tokens, heads, size), count = r.shape[1:], weights.shape[-1] - 1
    extents = sequence_extents(r, cu_seqlens, position, chunk)
    ring_out = KeptStates(states, ring, count, every, extents, chunk).final_ring()
    carried = 0 if ring is None else count
    launch = snapshot_launch(y.dtype, size, every)
    tables = _tables(r, position, cu_seqlens, launch.chunk, every, chunk, carried)
    programs = tables.tile_places * heads * (size // launch.values)
    if programs == 0:
        return mixed, ring_out
    with on_device(r):
        snapshot_read_kernel[(programs,)](
            *(x.contiguous() for x in (r, y, weights, states)),
            ring.contiguous() if ring is not None and carried else None,
            *(tables.extents, tables.tiles, mixed, tokens, rows_per_sequence(tokens, chunk)),
            *(tables.tiles_each, heads, every),
            **_constants(y, launch, chunk, count, carried, tables),
        )
    return mixed, ring_out


def _constants(
    y: Tensor, launch: Launch, chunk: int, count: int, carried: int, tables: _Tables
) -> dict[str, object]:
    operands = precision(y.dtype)
    return {
        "CHUNK": chunk,
        "TILE": launch.chunk,
        "SIZE": y.shape[-1],
        "VALUES": launch.values,
        "COUNT": count,
        "OPERAND": operands["OPERAND"],
        "PRECISION": operands["PRECISION"],
        "HAS_RING": carried > 0,
        "HAS_TABLE": tables.extents is not None,
        "num_warps": launch.warps,
        "num_stages": launch.stages,
    }


@_read.register_fake
def _(r, y, states, weights, ring, position, cu_seqlens, every, chunk):  # type: ignore[no-untyped-def]
    sequences = r.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    shape = (sequences, weights.shape[-1] - 1, *states.shape[1:])
    mixed = torch.empty_like(y, memory_format=torch.contiguous_format)
    return mixed, states.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op(
    "wuneng::wkv7_snapshot_read_backward",
    mutates_args=(),
    schema=f"({_GIVEN}, Tensor? d_mixed, Tensor? d_ring_out, SymInt every, SymInt chunk) "
    f"-> ({', '.join(['Tensor'] * 5)})",
)
def _read_backward(*given: Any) -> tuple[Tensor, ...]:
    r, y, states, weights, ring, position, cu_seqlens = given[:7]
    d_mixed, d_ring_out, every, chunk = given[7:]
    gradients = _gradients(r, y, states, weights, ring)
    dr, dy, d_states, d_weights, d_ring = gradients
    d_states.zero_()
    (tokens, heads, size), count = r.shape[1:], weights.shape[-1] - 1
    carried = 0 if ring is None else count
    launch = snapshot_launch(y.dtype, size, every)
    tables = _tables(r, position, cu_seqlens, launch.chunk, every, chunk, carried)
    r, y, weights, states = (x.contiguous() for x in (r, y, weights, states))
    d_mixed = torch.zeros_like(y) if d_mixed is None else d_mixed.contiguous()
    rows = rows_per_sequence(tokens, chunk)
    constants = _constants(y, launch, chunk, count, carried, tables)
    with on_device(r):
        if tables.tile_places * heads:
            snapshot_gradients_kernel[(tables.tile_places * heads,)](
                *(r, y, weights, states),
                ring.contiguous() if ring is not None and carried else None,
                *(tables.extents, tables.tiles, d_mixed, dr, dy, d_weights),
                *(tokens, rows, tables.tiles_each, heads, every),
                **constants,
            )
        programs = tables.kept_places * heads * (size // launch.values) if count else 0
        if programs:
            snapshot_state_gradients_kernel[(programs,)](
                *(r, weights, tables.extents, tables.kept, d_mixed),
                None if d_ring_out is None else d_ring_out.contiguous(),
                *(d_states, d_ring if carried else None),
                *(tokens, rows, tables.kept_each, heads, every),
                HAS_D_RING_OUT=d_ring_out is not None,
                **constants,
            )
    return gradients


def _gradients(
    r: Tensor, y: Tensor, states: Tensor, weights: Tensor, ring: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Memory for the gradients; for the ring's an empty tensor where there is none."""
    dr, dy, d_states, d_weights = (
        torch.empty_like(x, memory_format=torch.contiguous_format) for x in (r, y, states, weights)
    )
    shape = (0,) if ring is None else ring.shape
    return dr, dy, d_states, d_weights, states.new_empty(shape, dtype=torch.float32)


@_read_backward.register_fake
def _(r, y, states, weights, ring, *others):  # type: ignore[no-untyped-def]
    return _gradients(r, y, states, weights, ring)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, every, chunk = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)
    ctx.choices = (every, chunk)


def _differentiate(
    ctx: Any, d_mixed: Tensor | None, d_ring_out: Tensor | None
) -> tuple[Tensor | None, ...]:
    has_ring = ctx.saved_tensors[4] is not None
    *gradients, d_ring = torch.ops.wuneng.wkv7_snapshot_read_backward(
        *ctx.saved_tensors, d_mixed, d_ring_out, *ctx.choices
    )
    return (
        *gradients,
        d_ring if has_ring else None,
        *(None for _ in ("position", "cu_seqlens", "every", "chunk")),
    )


_read.register_autograd(_differentiate, setup_context=_setup_context)
