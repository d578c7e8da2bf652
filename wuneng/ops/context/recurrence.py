"""WKV-7 over a sequence that is cut in pieces, one per rank.

With S_in the state before a piece and P_t = A_1 ... A_t the products of its transitions
A_i = diag(exp w_i) + a_i^T b_i, everything in the piece is affine in S_in:

    S_t = S^0_t + S_in P_t           y_t = y^0_t + (r_t P_t^T) S_in^T

S^0 and y^0 are the recurrence from a zero state. r_t P_t^T is what the same recurrence reads when
it is fed nothing (v = 0) and starts from the identity, and M = P_T is its end. So a piece costs two
runs of the operator, neither of which waits for another rank, one scan (:mod:`.scan`) and one
product; the first rank, and one that begins with a new document, saves the second run. Gradients
are autograd's through all of that.

Snapshots are states too, read with weights of their own: boundaries within the piece are in both
runs, and earlier ones come as a ring from the ranks before.

Legend: B rows, T tokens of the piece, S heads, N head size, n snapshots.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wuneng.ops.context.piece import Piece
from wuneng.ops.context.scan import rings_before, states_before
from wuneng.ops.wkv7 import Snapshots, wkv7
from wuneng.ops.wkv7.reference import compute_dtype


def wkv7_of_piece(
    *inputs: Tensor,
    piece: Piece,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    snapshots: Snapshots | None = None,
    **options: Any,
) -> tuple[Tensor, None] | tuple[Tensor, None, None]:
    """As :func:`wuneng.ops.wkv7`, of this rank's piece; every rank calls it at the same time.

    Args:
        inputs: r, w, k, v, a, b ``[B, T, S, N]``, or with ``cu_seqlens`` ``[1, B * T, S, N]``.
        piece: which tokens they are.
        initial_state: None; whole sequences begin with a zero state.
        cu_seqlens: of the piece's own documents.
        snapshots: without ring and position, which come from the ranks before.
        options: handed on.

    Returns:
        y in the shape of v and in its dtype; no state (and no ring), which a cache would keep.

    Raises:
        ValueError: a state or a ring is given.
    """
    if initial_state is not None or (snapshots is not None and snapshots.ring is not None):
        raise ValueError(
            "context_parallel: the state comes from the rank before, none can be given"
        )
    v = inputs[3]
    batch, dtype = piece.seen.shape[1], compute_dtype(*inputs)
    sequences = batch if cu_seqlens is None else cu_seqlens.numel() - 1
    runs = _Runs(inputs, piece, snapshots, options, dtype)
    y, end, ring = runs.from_zero(cu_seqlens, sequences)
    read, transition, boundaries = runs.from_identity()
    before = states_before(end[piece.last], transition, piece)
    rows = _by_row(y, batch)
    reach = piece.reach
    added = _read(read, before)
    if snapshots is not None and snapshots.count:
        own, spans = ring[piece.last], piece.spans(piece.context.rank)
        added_to_ring = before[:, None] @ boundaries
        own = own + torch.where(spans[:, None, None, None, None], added_to_ring, 0)
        older = rings_before(own, snapshots.every, piece)
        added = added + runs.read_ring(older)
    if piece.within is not None:
        added = torch.where(piece.within[:, :, None, None], added, 0)
    head = (rows[:, :reach].to(dtype) + added).to(v.dtype)
    y = torch.cat([head, rows[:, reach:]], dim=1).view_as(v)
    return (y, None) if snapshots is None else (y, None, None)


class _Runs:
    """The operator's two runs over one piece."""

    def __init__(
        self,
        inputs: tuple[Tensor, ...],
        piece: Piece,
        snapshots: Snapshots | None,
        options: dict[str, Any],
        dtype: torch.dtype,
    ) -> None:
        self.inputs, self.piece, self.options = inputs, piece, options
        self.snapshots, self.dtype = snapshots, dtype
        self.batch = piece.seen.shape[1]
        self.seen = piece.seen[piece.context.rank]

    def from_zero(self, cu_seqlens: Tensor | None, sequences: int) -> tuple[Tensor, ...]:
        """y^0 as the inputs are, end states ``[sequences, S, N, N]`` and rings, from nothing."""
        options = {**self.options, "cu_seqlens": cu_seqlens}
        if self.snapshots is None:
            y, end = wkv7(*self.inputs, **options)
            return y, end, end
        position = self.seen.new_zeros(sequences).index_copy(0, self.piece.first, self.seen)
        given = self._snapshots(self.snapshots.weights, position)
        return wkv7(*self.inputs, **options, snapshots=given)

    def from_identity(self) -> tuple[Tensor, ...]:
        """r_t P_t^T ``[B, reach, S, N]``, M ``[B, S, N, N]`` and P at the newest boundaries
        ``[B, n, S, N, N]``, of rows that are still in a document of the rank before."""
        r, w, _, _, a, b = (self._reached(x) for x in self.inputs)
        size = r.shape[-1]
        same = torch.eye(size, dtype=self.dtype, device=r.device)
        same = same.expand(self.batch, r.shape[2], size, size)
        count = 0 if self.snapshots is None else self.snapshots.count
        if not self.piece.reach:
            return r.to(self.dtype), same, same[:, None].expand(-1, count, -1, -1, -1)
        if self.piece.within is not None:
            # Past its document's end a row stands still: the identity update.
            within = self.piece.within[:, :, None, None]
            w, a, b = (torch.where(within, x, 0) for x in (w, a, b))
        nothing = torch.zeros_like(r, dtype=self.dtype)
        inputs = (r, w, nothing, nothing, a, b)
        options: dict[str, Any] = {**self.options, "initial_state": same.contiguous()}
        if self.snapshots is None:
            y, end = wkv7(*inputs, **options)
            return y, end, end
        given = self._snapshots(self._reached(self.snapshots.weights), self.seen)
        return wkv7(*inputs, **options, snapshots=given)

    def read_ring(self, ring: Tensor) -> Tensor:
        """What the tokens read of snapshots ``ring`` ``[B, n, S, N, N]`` from before the piece,
        ``[B, reach, S, N]``: the i-th newest is a token's snapshot i + d, where d boundaries lie
        between the piece's start and the token."""
        assert self.snapshots is not None
        every, count = self.snapshots.every, self.snapshots.count
        r = self._reached(self.inputs[0]).to(self.dtype)
        weights = self._reached(self.snapshots.weights).to(self.dtype)
        place = self.seen[:, None] + torch.arange(r.shape[1], device=r.device)
        crossed = place // every - self.seen[:, None] // every
        total = torch.zeros_like(r)
        for newest in range(count):
            index = crossed + newest
            share = weights.gather(
                -1,
                (1 + index.clamp(max=count - 1))[:, :, None, None].expand(
                    -1, -1, weights.shape[2], -1
                ),
            )
            share = torch.where((index < count)[:, :, None, None], share, 0)
            total = total + _read(r * share, ring[:, newest])
        return total

    def _reached(self, x: Tensor) -> Tensor:
        return _by_row(x, self.batch)[:, : self.piece.reach]

    def _snapshots(self, weights: Tensor, position: Tensor) -> Snapshots:
        assert self.snapshots is not None
        heads, size = self.inputs[0].shape[2:]
        shape = (len(position), self.snapshots.count, heads, size, size)
        ring = torch.zeros(shape, dtype=self.dtype, device=position.device)
        return Snapshots(self.snapshots.every, weights, ring, position)


def _by_row(x: Tensor, batch: int) -> Tensor:
    """``[B, T, ...]`` of a row's worth, or of documents packed in one row."""
    return x.reshape(batch, -1, *x.shape[2:])


def _read(vectors: Tensor, state: Tensor) -> Tensor:
    """``[B, T, S, N_value]``: states ``[B, S, N_value, N_key]`` read with ``[B, T, S, N_key]``."""
    return torch.einsum("btsk,bsvk->btsv", vectors, state)
