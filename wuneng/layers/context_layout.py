"""The layout of a rank's piece under context parallelism: what comes from the ranks before.

Layers ask their layout for the token before, for what runs the recurrence, and for the keys and
values that queries see; so a layer that uses nothing else need not know that sequences are cut.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from wuneng.layers.layout import SequenceLayout
from wuneng.ops.context import Piece, from_previous_rank, gather_tokens, wkv7_of_piece


@dataclass(frozen=True)
class PieceLayout(SequenceLayout):
    """A :class:`SequenceLayout` of the piece's own tokens, whose rows go on from rank to rank."""

    piece: Piece = field(kw_only=True)

    @classmethod
    def of(cls, piece: Piece, document_ids: Tensor | None, batch: int) -> PieceLayout:
        """Of this rank's columns of the whole ``document_ids`` ``[B, T]``."""
        own = SequenceLayout.dense(batch, piece.length)
        if document_ids is not None:
            own = SequenceLayout.from_documents(document_ids[:, piece.tokens])
        return cls(own.batch, own.length, own.cu_seqlens, own.indices, piece=piece)

    def before(self, *x: Tensor) -> Tensor:
        """Each sequence's token before this piece, as :meth:`SequenceLayout.before`; zero where a
        document starts here."""
        ends = [u.reshape(self.batch, self.length, -1)[:, -1] for u in x]
        received = from_previous_rank(torch.cat(ends, dim=-1), self.piece.context)
        received = torch.where(self.piece.goes_on[:, None], received, 0)
        if self.cu_seqlens is None:
            return received
        nothing = received.new_zeros(self.sequences, received.shape[-1])
        return nothing.index_copy(0, self.piece.first, received)

    def previous(self, x: Tensor, carry: Tensor | None) -> Tensor:
        """As :meth:`SequenceLayout.previous`; without a carry it comes from the rank before."""
        return super().previous(x, self.before(x) if carry is None else carry)

    def shift(self, x: Tensor, mu: Tensor, carry: Tensor | None) -> Tensor:
        """As :meth:`SequenceLayout.shift`; without a carry it comes from the rank before."""
        return super().shift(x, mu, self.before(x) if carry is None else carry)

    def runs(self, recurrence: Any) -> Any:
        """WKV-7 of a piece.

        Raises:
            ValueError: a recurrence of its own, which knows nothing of the other ranks.
        """
        if recurrence is not None:
            raise ValueError(
                "context_parallel: the state's recurrence is replaced (StateHeads.recurrence), and "
                "what replaces it runs within one process only"
            )
        return partial(wkv7_of_piece, piece=self.piece)

    def seen_by(self, key: Tensor, value: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
        """Every key and value that this piece's queries may see, the columns of :meth:`keys`."""
        tokens_first = torch.cat([key, value], dim=-1).permute(2, 0, 1, 3)
        every = gather_tokens(tokens_first, self.piece.lengths, self.piece.context)
        both = every[self.keys(window)].permute(1, 2, 0, 3)
        key, value = both.chunk(2, dim=-1)
        return key, value

    def keys(self, window: int | None) -> slice:
        """Which tokens of the whole sequence that is: up to the piece's end, within the window."""
        own = self.piece.tokens
        return slice(0 if window is None else max(0, own.start - window + 1), own.stop)
