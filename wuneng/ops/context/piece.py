"""A rank's piece of the sequences in a batch, and which documents go on across the cuts.

Legend: B rows, T tokens of the whole sequence, R ranks. Every rank knows the documents of the whole
sequence, so all agree on what follows without asking again.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from wuneng.ops.context.active import Context


@dataclass(frozen=True, eq=False)
class Piece:
    """This rank's consecutive tokens of B rows.

    Attributes:
        context: who has the others.
        lengths: tokens of every rank's piece.
        seen: ``[R, B]`` int64: tokens on earlier ranks of the document that each piece begins in;
            zero where it begins with a new one.
        ends: ``[R, B]`` int64: tokens, from its start on any rank, of the document that each piece
            ends in.
        first, last: ``[B]`` int64: which of this piece's sequences, counted over all rows, is its
            row's first and last.
        reach: columns of the piece in which some row is still in a document of the rank before; all
            of them where every row is one document, none where nothing goes on.
        within: ``[B, reach]`` whether a row still is there; None where every row is.
    """

    context: Context
    lengths: tuple[int, ...]
    seen: Tensor
    ends: Tensor
    first: Tensor
    last: Tensor
    reach: int
    within: Tensor | None

    @property
    def length(self) -> int:
        """Tokens of this rank's piece, a row."""
        return self.lengths[self.context.rank]

    @property
    def tokens(self) -> slice:
        """Where they are in the whole sequence."""
        end = list(accumulate(self.lengths))[self.context.rank]
        return slice(end - self.length, end)

    @property
    def goes_on(self) -> Tensor:
        """``[B]``: whether the piece begins in a document of the rank before."""
        return self.seen[self.context.rank] > 0

    def spans(self, rank: int) -> Tensor:
        """``[B]``: whether all of a rank's piece is in a document that begins before it."""
        seen = self.seen[rank]
        return (seen > 0) & (self.ends[rank] == seen + self.lengths[rank])


def make_piece(
    context: Context,
    lengths: tuple[int, ...],
    document_ids: Tensor | None,
    batch: int,
    device: torch.device,
) -> Piece:
    """The piece of this rank.

    Args:
        lengths: tokens of every rank's piece.
        document_ids: ``[B, T]`` of the whole sequence, as anywhere; None: every row is a document.
    """
    index = torch.arange(sum(lengths), device=device)
    if document_ids is None:
        place = index.expand(batch, -1)
    else:
        starts = document_ids[:, 1:] != document_ids[:, :-1]
        starts = nn.functional.pad(starts, (1, 0), value=True)
        place = index - torch.where(starts, index, 0).cummax(-1).values
    end = torch.tensor(list(accumulate(lengths)), device=device)
    begin = end - torch.tensor(lengths, device=device)
    seen, ends = place[:, begin].T, place[:, end - 1].T + 1
    own = slice(int(sum(lengths[: context.rank])), int(sum(lengths[: context.rank + 1])))
    rows = torch.arange(batch, device=device)
    if document_ids is None:
        reach = lengths[context.rank] if context.rank else 0
        return Piece(context, lengths, seen, ends, rows, rows, reach, None)
    starts = starts[:, own].clone()
    starts[:, 0] = True
    sequence = (starts.flatten().cumsum(0) - 1).view(batch, -1)
    columns = torch.arange(lengths[context.rank], device=device)
    before = seen[context.rank][:, None]
    within = (place[:, own] == before + columns) & (before > 0)
    reach = int(within.any(0).sum())
    kept = None if bool(within[:, :reach].all()) else within[:, :reach]
    return Piece(context, lengths, seen, ends, sequence[:, 0], sequence[:, -1], reach, kept)
