"""Sequences onto chunks: which tokens are processed together, and where they go back.

A chunk is C consecutive tokens of one sequence. At chunk step i every sequence that still has
tokens is *active*; sequences are sorted by length, longest first, so the active ones are always a
prefix (as in torch's PackedSequence) and one batched matmul advances all of them. A sequence's
state therefore never meets another's, and many short documents cost as many steps as the longest.

    Plan      every token, once
    Group     sequences that step together, a bounded number of rows a step
    Segment   a stretch of chunk steps of one group, small enough for its work to stay in cache

A *row* is one chunk of one head; ``segments`` says how its tokens are read. Chunks begin at
absolute positions, multiples of C, even when a sequence is continued midway: then its first chunk
starts with empty slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from wuneng.ops.wkv7.reference import check_boundaries, check_position
from wuneng.ops.wkv7.segments import DenseSegment, RaggedSegment, Segment


@dataclass(frozen=True)
class Group:
    """Sequences that step together.

    Attributes:
        sequences: which ones, as rows of the state: a slice, or an index tensor, longest first.
        size: how many.
        counts: active ones at each chunk step, never growing.
        segments: the steps in order, cut into stretches.
        offset: where the group's chunks begin among all chunks (steps first, then sequences).
    """

    sequences: slice | Tensor
    size: int
    counts: tuple[int, ...]
    segments: tuple[Segment, ...]
    offset: int

    @property
    def uniform(self) -> bool:
        """Every sequence is active at every step, so a step's end states are the next's start."""
        return all(count == self.size for count in self.counts)

    def gather(self, states: Tensor) -> Tensor:
        """Rows ``[size * S, N, N]`` of per-sequence ``states`` ``[sequences, S, N, N]``."""
        if isinstance(self.sequences, slice):
            return states[self.sequences].flatten(0, 1)
        return states.index_select(0, self.sequences).flatten(0, 1)

    def scatter(self, out: Tensor, rows: Tensor) -> None:
        """The inverse of :meth:`gather`, into ``out``."""
        states = rows.view(self.size, *out.shape[1:])
        if isinstance(self.sequences, slice):
            out[self.sequences].copy_(states)
        else:
            out.index_copy_(0, self.sequences, states)


@dataclass(frozen=True, eq=False)
class Plan:
    """The whole call.

    Attributes:
        chunk: C.
        lengths: tokens of each sequence in this call.
        positions: tokens of each sequence before it.
        groups: every sequence is in exactly one, also those without tokens.
        chunk_sequence: ``[chunks]`` int64, on the CPU: the sequence of each chunk in plan order.
        chunk_start: ``[chunks]`` int64, on the CPU: absolute position of each chunk's first slot.
    """

    chunk: int
    lengths: tuple[int, ...]
    positions: tuple[int, ...]
    groups: tuple[Group, ...]
    chunk_sequence: Tensor
    chunk_start: Tensor


def max_state_slots(tokens: int, sequences: int, chunk: int, aligned: bool) -> int:
    """Upper bound, from shapes alone, on the states that a plan keeps (per head).

    Args:
        tokens: of all sequences together.
        aligned: a plain batch: equal lengths, from position 0.
    """
    if aligned:
        return sequences * (-(-tokens // (sequences * chunk)) + 1)
    # Two partly filled chunks each, and the final state.
    return tokens // chunk + 3 * sequences


@lru_cache(maxsize=32)
def make_plan(
    batch: int,
    tokens: int,
    ends: tuple[int, ...] | None,
    positions: tuple[int, ...] | None,
    chunk: int,
    chunk_budget: int,
    device: torch.device,
) -> Plan:
    """Lay sequences out; cached, because every layer of a model asks for the same plan.

    Args:
        batch, tokens: B and T of the input.
        ends: ``cu_seqlens`` as numbers, or None for B sequences of T tokens.
        positions: tokens that each sequence has seen before, or None for zero.
        chunk: C.
        chunk_budget: chunks worked on together, hence sequences in a group and chunks in a segment.
        device: of the index tensors.

    Raises:
        ValueError: ``cu_seqlens`` does not run from 0 to T without going down, or a position is
            negative.
    """
    check_position(positions)
    if ends is None:
        starts, lengths = [row * tokens for row in range(batch)], [tokens] * batch
    else:
        check_boundaries(ends, tokens)
        starts = list(ends[:-1])
        lengths = [end - start for start, end in pairwise(ends)]
    seen = positions or (0,) * len(starts)
    fronts = [position % chunk for position in seen]
    if ends is None and not any(fronts):
        groups = _dense_groups(batch, tokens, chunk, chunk_budget)
    else:
        groups = _ragged_groups(starts, lengths, fronts, chunk, chunk_budget, device)
    first_slots = [position - front for position, front in zip(seen, fronts, strict=True)]
    sequence, start = _chunk_positions(groups, torch.tensor(first_slots), chunk)
    return Plan(chunk, tuple(lengths), seen, groups, sequence, start)


def _dense_groups(batch: int, tokens: int, chunk: int, chunk_budget: int) -> tuple[Group, ...]:
    groups: list[Group] = []
    steps = -(-tokens // chunk)
    for first in range(0, batch, chunk_budget):
        rows = slice(first, min(first + chunk_budget, batch))
        size = rows.stop - first
        stride = max(1, chunk_budget // size)
        # A last chunk with empty slots is a segment of its own: the others need no copy.
        cuts = [*range(0, tokens // chunk, stride), tokens // chunk]
        cuts += [steps] if tokens % chunk else []
        segments = tuple(
            DenseSegment(
                start, (size,) * (end - start), rows, slice(start * chunk, end * chunk), chunk
            )
            for start, end in pairwise(cuts)
            if end > start
        )
        groups.append(Group(rows, size, (size,) * steps, segments, first * steps))
    return tuple(groups)


def _ragged_groups(
    starts: list[int],
    lengths: list[int],
    fronts: list[int],
    chunk: int,
    chunk_budget: int,
    device: torch.device,
) -> tuple[Group, ...]:
    steps = [
        -(-(front + length) // chunk) if length else 0
        for front, length in zip(fronts, lengths, strict=True)
    ]
    order = sorted(range(len(steps)), key=lambda sequence: -steps[sequence])
    groups: list[Group] = []
    offset = 0
    for first in range(0, len(order), chunk_budget):
        members = order[first : first + chunk_budget]
        counts = _active_counts([steps[sequence] for sequence in members])
        begins = torch.tensor([starts[s] - fronts[s] for s in members])
        spans = torch.tensor([[starts[s], starts[s] + lengths[s]] for s in members])
        segments = tuple(
            _ragged_segment(begins, spans, counts, first_step, last_step, chunk, device)
            for first_step, last_step in _cut(counts, chunk_budget)
        )
        index = torch.tensor(members, device=device)
        groups.append(Group(index, len(members), counts, segments, offset))
        offset += sum(counts)
    return tuple(groups)


def _active_counts(steps: list[int]) -> tuple[int, ...]:
    """How many of the sequences, given their step counts longest first, are active at each step."""
    counts, active = [], len(steps)
    for step in range(steps[0]):
        while steps[active - 1] <= step:
            active -= 1
        counts.append(active)
    return tuple(counts)


def _cut(counts: tuple[int, ...], chunk_budget: int) -> list[tuple[int, int]]:
    """Greedy stretches of steps holding at most ``chunk_budget`` chunks, at least a step."""
    cuts, start, held = [], 0, 0
    for step, count in enumerate(counts):
        if step > start and held + count > chunk_budget:
            cuts.append((start, step))
            start, held = step, 0
        held += count
    return [*cuts, (start, len(counts))] if counts else []


def _ragged_segment(
    begins: Tensor,
    spans: Tensor,
    counts: tuple[int, ...],
    first_step: int,
    last_step: int,
    chunk: int,
    device: torch.device,
) -> RaggedSegment:
    """``begins`` ``[n]`` first slot's (virtual) token, ``spans`` ``[n, 2]`` the real tokens."""
    own = counts[first_step:last_step]
    step = torch.repeat_interleave(torch.arange(first_step, last_step), torch.tensor(own))
    member = torch.cat([torch.arange(count) for count in own])
    token = (begins[member] + step * chunk)[:, None] + torch.arange(chunk)
    real = ((token >= spans[member, :1]) & (token < spans[member, 1:])).flatten()
    source = torch.where(real, token.flatten(), 0)
    filled = real.nonzero().squeeze(1)
    return RaggedSegment(
        first_step,
        own,
        chunk,
        source.to(device),
        (~real).nonzero().squeeze(1).to(device),
        filled.to(device),
        source[filled].to(device),
    )


def _chunk_positions(
    groups: tuple[Group, ...], first_slots: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """Sequence and absolute start of every chunk in plan order, each ``[chunks]``."""
    sequence = [torch.zeros(0, dtype=torch.long)]
    start = [torch.zeros(0, dtype=torch.long)]
    for group in groups:
        if isinstance(group.sequences, slice):
            members = torch.arange(group.sequences.start, group.sequences.stop)
        else:
            members = group.sequences.cpu()
        for step, count in enumerate(group.counts):
            sequence.append(members[:count])
            start.append(first_slots[members[:count]] + step * chunk)
    return torch.cat(sequence), torch.cat(start)


def step_offsets(counts: tuple[int, ...]) -> list[int]:
    """Chunks before each step, and after the last."""
    return [0, *accumulate(counts)]
