"""How a padded or packed batch maps onto the sequences that recurrent state runs over.

Attention sees ``[B, T]`` with a mask. State, token shift and snapshots need each sequence's real
tokens in a row: pads must contribute nothing and one document must not see another. A
:class:`SequenceLayout` holds that mapping; for an ordinary batch it is the identity and free.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from wuneng.ops import Recurrence, last_token, previous_token, token_shift

_most_documents: ContextVar[int | None] = ContextVar("most_documents", default=None)


@contextmanager
def documents_at_most(most: int) -> Iterator[None]:
    """In the block no batch of packed documents has more than ``most`` of them, over all rows.

    Layouts are then made without waiting for the device, of ``most`` sequences, those left over
    empty: shapes do not tell how many documents there are, and a CUDA graph serves any number.
    """
    token = _most_documents.set(most)
    try:
        yield
    finally:
        _most_documents.reset(token)


@dataclass(frozen=True)
class SequenceLayout:
    """Which tokens of a ``[B, T]`` batch form which sequence.

    Attributes:
        batch: B, rows of the padded batch.
        length: T, columns of the padded batch.
        cu_seqlens: ``[sequences + 1]`` int64 boundaries in the unpadded order; None when every row
            is one whole sequence (then nothing is rearranged).
        indices: ``[total]`` int64 positions of the real tokens in the flattened ``[B * T]`` batch;
            None when every token is real.
    """

    batch: int
    length: int
    cu_seqlens: Tensor | None = None
    indices: Tensor | None = None

    @classmethod
    def dense(cls, batch: int, length: int) -> SequenceLayout:
        """Every row is one sequence without pads."""
        return cls(batch, length)

    @classmethod
    def from_padding(cls, mask: Tensor) -> SequenceLayout:
        """Rows with pads, ``mask`` ``[B, T]`` true (non-zero) at real tokens."""
        real = mask.bool()
        batch, length = real.shape
        if bool(real.all()):
            return cls(batch, length)
        counts = real.sum(dim=1)
        return cls(batch, length, _boundaries(counts), real.flatten().nonzero().squeeze(1))

    @classmethod
    def from_documents(cls, document_ids: Tensor) -> SequenceLayout:
        """Rows packed with documents; a new one starts wherever ``document_ids`` [B, T] changes.

        Waits for the device, which alone knows how many there are, but inside of
        :func:`documents_at_most`.
        """
        batch, length = document_ids.shape
        starts = torch.ones_like(document_ids, dtype=torch.bool)
        starts[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
        most = _most_documents.get()
        if most is not None:
            return cls(batch, length, _starts_of(starts.flatten(), most))
        positions = starts.flatten().nonzero().squeeze(1)
        if positions.numel() == batch:
            return cls(batch, length)
        end = positions.new_tensor([batch * length])
        return cls(batch, length, torch.cat([positions, end]))

    @property
    def sequences(self) -> int:
        """Number of sequences: rows of every per-sequence state."""
        return self.batch if self.cu_seqlens is None else self.cu_seqlens.numel() - 1

    def pack(self, x: Tensor) -> Tensor:
        """``[B, T, ...]`` to the order state runs in: unchanged, or ``[1, total, ...]``."""
        if self.cu_seqlens is None:
            return x
        flat = x.reshape(self.batch * self.length, *x.shape[2:])
        return (flat if self.indices is None else flat[self.indices]).unsqueeze(0)

    def unpack(self, y: Tensor) -> Tensor:
        """Inverse of :meth:`pack`; pads get zeros."""
        if self.cu_seqlens is None:
            return y
        flat = y[0]
        if self.indices is not None:
            full = flat.new_zeros(self.batch * self.length, *flat.shape[1:])
            flat = full.index_copy(0, self.indices, flat)
        return flat.reshape(self.batch, self.length, *flat.shape[1:])

    def previous(self, x: Tensor, carry: Tensor | None) -> Tensor:
        """The token before each token, in packed order.

        Args:
            x: packed values, ``[B, T, C]`` or ``[1, total, C]``.
            carry: ``[sequences, C]`` each sequence's last token of an earlier call; None is zero.
        """
        return previous_token(x, carry, self.cu_seqlens)

    def shift(self, x: Tensor, mu: Tensor, carry: Tensor | None) -> Tensor:
        """Token shift x_t + mu (x_{t-1} - x_t) of packed values; arguments as :meth:`previous`."""
        mu = mu.to(x.dtype)
        if self.cu_seqlens is None and carry is None:
            return token_shift(x, mu)
        return torch.lerp(x, self.previous(x, carry), mu)

    def before(self, *x: Tensor) -> Tensor | None:
        """The token before this call's first of every sequence, where another process has it.

        Args:
            x: packed values, as :meth:`previous`.

        Returns:
            ``[sequences, all their channels]``; None where sequences begin in this process.
        """
        return None

    def runs(self, recurrence: Recurrence | None) -> Recurrence | None:
        """What is to run in place of :func:`wuneng.ops.wkv7`; None is itself."""
        return recurrence

    def seen_by(self, key: Tensor, value: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
        """The keys and values ``[B, G, any, N]`` that the queries of this call see, from those of
        its own tokens ``[B, G, T, N]``, with a sliding window or without."""
        return key, value

    def last(self, x: Tensor, carry: Tensor | None) -> Tensor:
        """Each sequence's last token ``[sequences, C]``; an empty sequence keeps its carry."""
        return last_token(x, carry, self.cu_seqlens)

    def lengths(self, device: torch.device) -> Tensor:
        """Real tokens in each sequence, ``[sequences]`` int64."""
        if self.cu_seqlens is None:
            return torch.full((self.batch,), self.length, dtype=torch.long, device=device)
        return self.cu_seqlens[1:] - self.cu_seqlens[:-1]


def _starts_of(starts: Tensor, most: int) -> Tensor:
    """``[most + 1]`` boundaries of what begins wherever ``starts`` ``[total]`` is true."""
    (total,) = starts.shape
    place = torch.where(starts, starts.cumsum(0) - 1, most)
    ends = starts.new_full((most + 1,), total, dtype=torch.int64)
    index = torch.where(starts, torch.arange(total, device=starts.device), total)
    return ends.scatter(0, place, index)


def _boundaries(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
