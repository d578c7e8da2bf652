"""Snapshot reads from the states the forward kernel stored, in batched products of torch.

What ``triton_snapshots`` does in kernels, in plain torch that autograd differentiates: what the
kernels are tested against. Each snapshot is a stored row (the kernel keeps the state at
every chunk's start, and ``every`` is a multiple of the chunk) or, for a continued sequence, one of
the ring's. Tokens between two boundaries read the same snapshots: they form a *window*, and a
window's read of one snapshot is one product ``[every, N] @ [N, N]`` per head.

Legend: W windows, E tokens of a window (``every``), S heads, N head size, n snapshots.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wuneng.ops.wkv7.snapshots import Snapshots


@dataclass(frozen=True)
class Extents:
    """Per sequence, int64: first token, tokens, tokens seen before, first row of stored states."""

    begin: Tensor
    length: Tensor
    seen: Tensor
    first_row: Tensor


@dataclass(frozen=True)
class KeptStates:
    """Earlier states: rows that the forward kernel stored, and the ring of a continued sequence.

    Attributes:
        stored: ``[rows, S, N, N]``, one at every ``chunk`` tokens; ``extents`` says where whose.
        ring: ``[sequences, n, S, N, N]`` or None.
        count: n, the snapshots that a token reads.
        every: tokens between two snapshots.
    """

    stored: Tensor
    ring: Tensor | None
    count: int
    every: int
    extents: Extents
    chunk: int

    def after(self, tokens: Tensor, sequence: Tensor) -> Tensor:
        """States ``[W, S, N, N]`` of ``sequence`` after ``tokens`` of its tokens (both ``[W]``).

        Where ``tokens`` is not positive some finite state comes back; the caller gives it no
        weight.
        """
        seen = self.extents.seen[sequence]
        row = tokens // self.chunk - seen // self.chunk
        stored = self.stored[self.extents.first_row[sequence] + row.clamp(min=0)]
        if self.ring is None:
            return stored
        slot = (seen // self.every - tokens // self.every).clamp(0, self.count - 1)
        carried = self.ring[sequence, slot]
        return torch.where((tokens > seen).view(-1, 1, 1, 1), stored.to(carried.dtype), carried)

    def final_ring(self) -> Tensor:
        """What the next token of every sequence reads, ``[sequences, n, S, N, N]`` float32."""
        seen = self.extents.seen
        sequence = torch.arange(seen.shape[0], device=self.stored.device)
        newest = (seen + self.extents.length) // self.every
        slots = []
        for back in range(self.count):
            tokens = (newest - back) * self.every
            state = _wide(self.after(tokens, sequence))
            slots.append(torch.where((tokens > 0).view(-1, 1, 1, 1), state, 0.0))
        if not slots:
            return _wide(self.stored.new_empty(len(sequence), 0, *self.stored.shape[1:]))
        return torch.stack(slots, dim=1)


#: What a snapshot read is given: r, y, states, snapshots, cu_seqlens and chunk.
StoredReads = tuple[Tensor, Tensor, Tensor, Snapshots, Tensor | None, int]


def read_snapshots_in_products(*given: *StoredReads) -> tuple[Tensor, Tensor]:
    """Mix the read of the state now with the snapshots' reads.

    Args:
        r: ``[B, T, S, N]``.
        y: ``[B, T, S, N]``, the read of the state now.
        states: ``[rows, S, N, N]`` as the forward kernel stores them.
        snapshots: weights, and ring and position where the sequences are continued.
        cu_seqlens: as :func:`wuneng.ops.wkv7`.
        chunk: tokens between two stored states; divides ``snapshots.every``.

    Returns:
        y ``[B, T, S, N]`` in its dtype, and the ring ``[B or sequences, n, S, N, N]`` float32
        (float64 of float64 states).
    """
    r, y, states, snapshots, cu_seqlens, chunk = given
    extents = sequence_extents(r, cu_seqlens, snapshots.position, chunk)
    kept = KeptStates(states, snapshots.ring, snapshots.count, snapshots.every, extents, chunk)
    with torch.autocast(r.device.type, enabled=False):
        ring = kept.final_ring()
        mixed = _wide(snapshots.weights[..., :1]) * _wide(y)
        if snapshots.count == 0 or r.shape[1] == 0:
            return mixed.to(y.dtype), ring
        windows = _Windows(r, snapshots, extents, cu_seqlens is not None)
        sequence, window = windows.sequence_and_index()
        read_WESN = windows.spread(r).to(states.dtype)
        gamma_WESn = _wide(windows.spread(snapshots.weights[..., 1:]))
        total_WSEN = torch.zeros((), device=r.device)
        for newest in range(snapshots.count):
            tokens = (window - newest) * snapshots.every
            snap_WSNN = kept.after(tokens, sequence)
            gamma_WSE1 = gamma_WESn[..., newest, None].transpose(1, 2) * (tokens > 0).view(
                -1, 1, 1, 1
            )
            reads_WSEN = read_WESN.transpose(1, 2) @ snap_WSNN.to(states.dtype).transpose(-1, -2)
            total_WSEN = total_WSEN + gamma_WSE1 * reads_WSEN
        mixed = mixed + windows.gather(total_WSEN.transpose(1, 2))
    return mixed.to(y.dtype), ring


def sequence_extents(
    r: Tensor, cu_seqlens: Tensor | None, position: Tensor | None, chunk: int
) -> Extents:
    """Where sequences lie in r ``[B, T, S, N]`` and in the stored states."""
    batch, tokens = r.shape[:2]
    if cu_seqlens is None:
        length = torch.full((batch,), tokens, device=r.device)
        begin = torch.arange(batch, device=r.device) * tokens
    else:
        length, begin = cu_seqlens.long().diff(), cu_seqlens.long()[:-1]
    seen = torch.zeros_like(begin) if position is None else position.to(r.device)
    rows = (length + seen % chunk + chunk - 1) // chunk + 1
    return Extents(begin, length, seen, rows.cumsum(0) - rows)


def _wide(x: Tensor) -> Tensor:
    """float32, or float64 of float64: what the kernels are judged against."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _Windows:
    """Tokens ``[B, T, ...]`` to windows ``[W, E, ...]`` and back.

    Fresh sequences of one length only need padding and a view. Packed or continued ones are
    scattered to their slots; the number of windows is then bounded, not counted, so that nothing
    waits for the device.
    """

    def __init__(self, r: Tensor, snapshots: Snapshots, extents: Extents, packed: bool) -> None:
        self.batch, self.tokens = r.shape[:2]
        self.every = snapshots.every
        self.extents = extents
        self.plain = not packed and snapshots.position is None
        continued = snapshots.position is not None
        if packed:
            self.count = self.tokens // self.every + extents.seen.shape[0] * (1 + continued)
        else:
            self.count = self.batch * (-(-self.tokens // self.every) + continued)
        if not self.plain:
            self._place(r)

    def _place(self, r: Tensor) -> None:
        """Find every sequence's first window and every token's slot."""
        seen, length, begin = self.extents.seen, self.extents.length, self.extents.begin
        used = (seen + length + self.every - 1) // self.every - seen // self.every
        self.first = used.cumsum(0) - used
        self.last = used.cumsum(0)
        everyone = torch.arange(seen.shape[0], device=r.device)
        token = torch.arange(self.batch * self.tokens, device=r.device)
        owner = everyone.repeat_interleave(length, output_size=token.shape[0])
        absolute = token - begin[owner] + seen[owner]
        window = self.first[owner] + absolute // self.every - seen[owner] // self.every
        self.slot = window * self.every + absolute % self.every

    def sequence_and_index(self) -> tuple[Tensor, Tensor]:
        """Every window's sequence, and its index in that sequence counted from its first token."""
        window = torch.arange(self.count, device=self.extents.seen.device)
        if self.plain:
            per_sequence = self.count // self.batch
            return window // per_sequence, window % per_sequence
        sequence = torch.searchsorted(self.last, window, right=True)
        sequence = sequence.clamp(max=self.last.shape[0] - 1)
        index = window - self.first[sequence] + self.extents.seen[sequence] // self.every
        # Windows past the last are empty: point them at no snapshot at all.
        return sequence, torch.where(window < self.last[-1], index, 0)

    def spread(self, x: Tensor) -> Tensor:
        """``[B, T, ...]`` to ``[W, E, ...]``; empty slots are zero."""
        if self.plain:
            padding = [0, 0] * (x.dim() - 2) + [0, -x.shape[1] % self.every]
            return F.pad(x, padding).reshape(self.count, self.every, *x.shape[2:])
        empty = x.new_zeros(self.count * self.every, *x.shape[2:])
        return empty.index_copy(0, self.slot, x.flatten(0, 1)).unflatten(0, (-1, self.every))

    def gather(self, x: Tensor) -> Tensor:
        """``[W, E, ...]`` back to ``[B, T, ...]``."""
        if self.plain:
            return x.reshape(self.batch, -1, *x.shape[2:])[:, : self.tokens]
        flat = x.flatten(0, 1).index_select(0, self.slot)
        return flat.unflatten(0, (self.batch, self.tokens))
