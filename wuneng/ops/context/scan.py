"""The state from rank to rank: an exclusive scan over the pieces.

A recurrence S_t = S_{t-1} A_t + v_t^T k_t is affine in the state before it, so a piece as a whole
is S_out = S_in M + E: E what the piece leaves of a zero state, M = prod A_t what it makes of the
identity. Such maps compose exactly and in any grouping (Martin & Cundy, "Parallelizing linear
recurrent neural nets over sequence length", arXiv 1709.04057). M and E are gathered once,
``[2, B, S, N, N]`` from each rank, and each rank composes those before it.

Legend: B rows, S heads, N head size, n snapshots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wuneng.ops.context.collectives import gather_tokens
from wuneng.ops.context.piece import Piece


def states_before(end: Tensor, transition: Tensor, piece: Piece) -> Tensor:
    """The state that each row of this rank's piece begins with.

    Args:
        end: E ``[B, S, N, N]``: the last document's state at the piece's end, from a zero state.
        transition: M ``[B, S, N, N]``; only rows that :meth:`Piece.spans` count.

    Returns:
        ``[B, S, N, N]``; zero where a row begins with a new document.
    """
    every = _gathered(torch.stack([end, transition]), piece)
    # The sum over nothing is zero, and keeps rank 0 in the backward pass of the gathering.
    state = every[:0, 0].sum(0)
    for rank in range(piece.context.rank):
        state = torch.where(_rows(piece.spans(rank)), state @ every[rank, 1], 0) + every[rank, 0]
    return torch.where(_rows(piece.goes_on), state, 0)


def rings_before(own: Tensor, every: int, piece: Piece) -> Tensor:
    """The newest snapshots that each row of this rank's piece begins with, newest first.

    Args:
        own: ``[B, n, S, N, N]``: those of the last document at the piece's end, as far as their
            positions lie in the piece; zero otherwise.
        every: tokens between two snapshots.

    Returns:
        ``[B, n, S, N, N]``; zero where a row begins with a new document.
    """
    everyone = _gathered(own, piece)
    count = own.shape[1]
    newest = torch.arange(count, device=own.device)
    ring = everyone[:0].sum(0)
    for rank in range(piece.context.rank):
        crossed = piece.ends[rank] // every - piece.seen[rank] // every
        source = newest - crossed[:, None]
        kept = (source >= 0) & piece.spans(rank)[:, None]
        index = source.clamp(min=0)[:, :, None, None, None].expand_as(ring)
        older = torch.where(kept[:, :, None, None, None], ring.gather(1, index), 0)
        ring = everyone[rank] + older
    return torch.where(_rows(piece.goes_on)[:, None], ring, 0)


def _gathered(x: Tensor, piece: Piece) -> Tensor:
    """``[R, *x.shape]`` of every rank."""
    return gather_tokens(x[None], (1,) * piece.context.ranks, piece.context)


def _rows(which: Tensor) -> Tensor:
    return which[:, None, None, None]
