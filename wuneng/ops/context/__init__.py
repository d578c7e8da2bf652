"""Context parallelism: a sequence cut into consecutive pieces, one per rank of a process group.

``active`` (who takes part), ``piece`` (which tokens a rank has, and what goes on across the cut),
``collectives`` (what crosses it, with gradients), ``scan`` (the state from rank to rank),
``recurrence`` (WKV-7 of a piece).
"""

from wuneng.ops.context.active import Context, active_context, context_parallel, single_process
from wuneng.ops.context.collectives import (
    from_previous_rank,
    gather_integers,
    gather_tokens,
    sum_gradients,
    summed_over_ranks,
)
from wuneng.ops.context.cutting import piece_lengths, piece_of
from wuneng.ops.context.piece import Piece, make_piece
from wuneng.ops.context.recurrence import wkv7_of_piece

__all__ = [
    "Context",
    "Piece",
    "active_context",
    "context_parallel",
    "from_previous_rank",
    "gather_integers",
    "gather_tokens",
    "make_piece",
    "piece_lengths",
    "piece_of",
    "single_process",
    "sum_gradients",
    "summed_over_ranks",
    "wkv7_of_piece",
]
