"""Where sequences and their segments lie, in tables that the Triton kernels read.

Made from tensors on the device without waiting for it: what is not known from shapes alone is
bounded, and what a bound leaves over is marked as empty.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wuneng.ops.wkv7.triton_kept_tables import kept_table


def rows_per_sequence(tokens: int, chunk: int, has_position: bool = False) -> int:
    """Boundary states of a sequence: one per chunk and one for its end.

    A sequence that starts between two boundaries can take a chunk more.
    """
    # Numbers: torch.compile's symbolic sizes do not add up with truth values.
    return -(-tokens // chunk) + int(has_position) + 1


def boundary_rows(tokens: int, chunk: int, sequences: int, packed: bool, has_position: bool) -> int:
    """Rows of boundary states to allocate, without looking at values on the device.

    Where that is only a bound there is one more at the end, for segments that are not needed.
    """
    if packed:
        return tokens // chunk + sequences * (2 + int(has_position)) + 1
    return sequences * rows_per_sequence(tokens, chunk, has_position) + int(has_position)


def sequence_table(
    batch: int, tokens: int, cu_seqlens: Tensor | None, position: Tensor | None, chunk: int
) -> Tensor | None:
    """int64 ``[sequences, 4]``: begin, end, empty leading slots, first row of boundary states.

    None when every sequence has ``tokens`` tokens and starts on a boundary: the kernels then
    compute these themselves. Nothing here waits for the device.
    """
    if cu_seqlens is None and position is None:
        return None

    def table_of_sequences() -> Tensor:
        return full_table(batch, tokens, cu_seqlens, position, chunk)

    if cu_seqlens is None or position is not None:
        return table_of_sequences()
    return kept_table(table_of_sequences, cu_seqlens, cu_seqlens.device, tokens, chunk)


def full_table(
    batch: int,
    tokens: int,
    cu_seqlens: Tensor | None,
    position: Tensor | None,
    chunk: int,
    device: torch.device | None = None,
) -> Tensor:
    """As :func:`sequence_table`, for any sequences; ``device`` where neither tensor tells it."""
    if cu_seqlens is not None:
        bounds = cu_seqlens.long()
        torch._assert_async(
            (bounds[0] == 0) & (bounds[-1] == tokens) & (bounds.diff() >= 0).all(),
            f"cu_seqlens must be non-decreasing from 0 to T = {tokens}",
        )
        begin, end = bounds[:-1], bounds[1:]
    else:
        device = device if position is None else position.device
        begin = torch.arange(batch, device=device) * tokens
        end = begin + tokens
    lead = torch.zeros_like(begin) if position is None else position.to(begin.device) % chunk
    rows = (end - begin + lead + chunk - 1).div(chunk, rounding_mode="floor") + 1
    return torch.stack([begin, end, lead, rows.cumsum(0) - rows], dim=1)


def places(counts: Tensor, bound: int) -> tuple[Tensor, Tensor]:
    """``bound`` places shared out to sequences, ``counts`` ``[sequences]`` each, in their order.

    Returns:
        Every place's sequence and its index among that sequence's places, int64 ``[bound]``. The
        index is -1 in places that are left over, so that ``bound`` may be known from shapes alone.
    """
    last = counts.cumsum(0)
    place = torch.arange(bound, device=counts.device)
    owner = torch.searchsorted(last, place, right=True).clamp(max=counts.shape[0] - 1)
    index = place - (last - counts)[owner]
    return owner, torch.where(place < last[-1], index, -1)


@dataclass(frozen=True)
class Segments:
    """Where segments lie; M of them at most, in the order of their sequences.

    Attributes:
        table: int64 ``[M, 4]``, a segment's begin, end, empty leading slots and first row of
            boundary states. Rows left over are empty and point at the last row of states.
        ranges: int64 ``[sequences, 2]``, a sequence's first segment, and the one after its last.
        is_first, is_last: bool ``[M]``, of its sequence; both where the row is left over.
    """

    table: Tensor
    ranges: Tensor
    is_first: Tensor
    is_last: Tensor


def max_segments(tokens: int, sequences: int, length: int, chunk: int, has_position: bool) -> int:
    """Upper bound on segments of ``length`` tokens, from shapes alone; ``tokens`` of all sequences.

    A sum of one rounded-up quotient per sequence.
    """
    leads = sequences * (chunk - 1) * int(has_position)
    return (tokens + leads) // length + sequences


def cut_sequences(table: Tensor, length: int, bound: int, chunk: int, rows: int) -> Segments:
    """Cut sequences (``table`` as ``triton_launch.full_table``'s) every ``length`` tokens.

    Cuts lie where chunks begin, counted from a sequence's first chunk; an empty sequence is one
    segment. ``bound`` is at least the number of segments; ``rows`` is that of boundary states.
    """
    begin, end, lead, row = table.unbind(1)
    base = begin - lead
    counts = (end - base + length - 1).div(length, rounding_mode="floor").clamp(min=1)
    owner, index = places(counts, bound)
    used = index >= 0
    start = base[owner] + index * length
    first = torch.maximum(start, begin[owner])
    last = torch.minimum(start + length, end[owner])
    columns = [torch.where(used, x, 0) for x in (first, last, first - start)]
    columns.append(torch.where(used, row[owner] + index * (length // chunk), rows - 1))
    after = counts.cumsum(0)
    return Segments(
        torch.stack(columns, 1),
        torch.stack([after - counts, after], 1),
        index <= 0,
        ~used | (index == counts[owner] - 1),
    )
