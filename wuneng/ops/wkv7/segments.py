"""Stretches of chunks: how their tokens are read and written.

An aligned batch is read through strided views, without a copy; ragged sequences are gathered. Slots
without a token hold the identity update (log decay 0, all else 0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Segment(Protocol):
    """Some chunk steps of one group. Views are ``[..., S, C, N]``; the leading axes run over
    (step, active sequence), steps first."""

    @property
    def first_step(self) -> int: ...

    @property
    def counts(self) -> tuple[int, ...]:
        """Active sequences at each step."""
        ...

    def load(self, x: Tensor) -> Tensor:
        """This segment's tokens of ``x`` ``[B, T, S, N]``, empty slots zero."""
        ...

    def target(self, out: Tensor) -> Tensor:
        """Where to write values for ``out`` ``[B, T, S, N]``: a view of it, or a buffer."""
        ...

    def commit(self, out: Tensor, target: Tensor) -> None:
        """Put a buffer that ``target`` gave out into ``out``; nothing to do for a view."""
        ...


@dataclass(frozen=True)
class DenseSegment:
    """Chunk steps of consecutive batch rows; only the last chunk may have empty slots."""

    first_step: int
    counts: tuple[int, ...]
    rows: slice
    tokens: slice
    chunk: int

    def load(self, x: Tensor) -> Tensor:
        part = x[self.rows, self.tokens]
        missing = len(self.counts) * self.chunk - part.shape[1]
        if missing:
            part = torch.cat([part, part.new_zeros(part.shape[0], missing, *part.shape[2:])], dim=1)
        return self._chunks(part)

    def target(self, out: Tensor) -> Tensor:
        part = out[self.rows, self.tokens]
        if part.shape[1] == len(self.counts) * self.chunk:
            return self._chunks(part)
        heads, size = part.shape[2:]
        return part.new_empty(len(self.counts), part.shape[0], heads, self.chunk, size)

    def commit(self, out: Tensor, target: Tensor) -> None:
        part = out[self.rows, self.tokens]
        if part.shape[1] != len(self.counts) * self.chunk:
            tokens = target.permute(1, 0, 3, 2, 4).flatten(1, 2)
            part.copy_(tokens[:, : part.shape[1]])

    def _chunks(self, part: Tensor) -> Tensor:
        return part.unflatten(1, (len(self.counts), self.chunk)).permute(1, 0, 3, 2, 4)


@dataclass(frozen=True)
class RaggedSegment:
    """Chunk steps of any sequences, gathered by token index.

    Attributes:
        source: ``[chunks * C]`` token that each slot holds, 0 in empty slots.
        empty: ``[empties]`` the slots without a token.
        filled: ``[chunks * C - empties]`` the others, and ``tokens`` what they hold.
    """

    first_step: int
    counts: tuple[int, ...]
    chunk: int
    source: Tensor
    empty: Tensor
    filled: Tensor
    tokens: Tensor

    def load(self, x: Tensor) -> Tensor:
        slots = x.flatten(0, 1).index_select(0, self.source)
        if self.empty.numel():
            slots.index_fill_(0, self.empty, 0.0)
        return slots.unflatten(0, (-1, self.chunk)).transpose(1, 2)

    def target(self, out: Tensor) -> Tensor:
        heads, size = out.shape[2:]
        return out.new_empty(sum(self.counts), heads, self.chunk, size)

    def commit(self, out: Tensor, target: Tensor) -> None:
        slots = target.transpose(1, 2).flatten(0, 1)
        if self.empty.numel():
            slots = slots.index_select(0, self.filled)
        out.flatten(0, 1).index_copy_(0, self.tokens, slots)
