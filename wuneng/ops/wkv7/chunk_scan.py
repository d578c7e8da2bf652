"""From chunk to chunk: the part of WKV-7 that has to run in order, forward and in reverse.

One batched product a step, over all active sequences and heads of a group. A step's rows are
(sequence, head), sequences longest first; see ``packing``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wuneng.ops.wkv7.packing import Group, step_offsets
from wuneng.ops.wkv7.segments import Segment


class GroupStates:
    """A group's states before every chunk, ``[rows, N, N]`` steps first, in one buffer.

    Where all sequences last equally long, a step's end states *are* the next step's start states
    and the final states follow the last step, so nothing is copied. Otherwise the end states of
    those that go on are copied over, and those of the others are final.
    """

    def __init__(self, group: Group, heads: int) -> None:
        self.group, self.heads = group, heads
        self.offsets = [heads * offset for offset in step_offsets(group.counts)]
        self.width = group.size * heads
        self.slots = self.offsets[-1] + (self.width if group.uniform else 0)
        self.buffer = torch.empty(0)

    def active(self, step: int) -> int:
        """Rows active at a step; none after the last."""
        counts = self.group.counts
        return counts[step] * self.heads if step < len(counts) else 0

    def sizes(self, segment: Segment) -> list[int]:
        """Rows of each of the segment's steps."""
        return [count * self.heads for count in segment.counts]

    def start(self, step: int) -> Tensor:
        """Rows before one step."""
        return self.buffer[self.offsets[step] : self.offsets[step] + self.active(step)]

    def starts(self, segment: Segment) -> Tensor:
        """Rows before the segment's steps."""
        first = segment.first_step
        return self.buffer[self.offsets[first] : self.offsets[first + len(segment.counts)]]

    def new_ends(self, segment: Segment) -> Tensor:
        """Where to put the rows after the segment's steps."""
        starts = self.starts(segment)
        if not self.group.uniform:
            return torch.empty_like(starts)
        first = self.offsets[segment.first_step] + self.width
        return self.buffer[first : first + len(starts)]

    def ends(self, segment: Segment, finals: Tensor) -> Tensor:
        """The rows after the segment's steps, once all steps have run."""
        ends = self.new_ends(segment)
        if not self.group.uniform:
            for step, end in enumerate(ends.split(self.sizes(segment)), segment.first_step + 1):
                going_on = self.active(step)
                if going_on:
                    end[:going_on].copy_(self.start(step))
                end[going_on:].copy_(finals[going_on : len(end)])
        return ends

    def scan(self, segment: Segment, matrix: Tensor, ends: Tensor, finals: Tensor) -> None:
        """S_end = S_start M + F in order.

        Args:
            matrix: ``[rows, N, N]``, M.
            ends: from :meth:`new_ends`, holding F.
            finals: ``[size * S, N, N]``, receives the states of sequences that end here.
        """
        sizes = self.sizes(segment)
        steps = zip(ends.split(sizes), matrix.split(sizes), strict=True)
        if self.group.uniform:
            starts = self.starts(segment).split(sizes)
            for (end, step_matrix), start in zip(steps, starts, strict=True):
                end.baddbmm_(start, step_matrix)
            return
        for step, (end, step_matrix) in enumerate(steps, segment.first_step):
            end.baddbmm_(self.start(step), step_matrix)
            going_on = self.active(step + 1)
            if going_on:
                self.start(step + 1).copy_(end[:going_on])
            finals[going_on : len(end)].copy_(end[going_on:])


class GroupGradients:
    """The reverse scan of a group: gradients of the states before (dS) and after (D) each chunk.

    Only the segment at hand is kept; ``carry`` ``[rows, N, N]`` is dS of the step that follows it.
    """

    def __init__(self, states: GroupStates, d_finals: Tensor) -> None:
        self.states, self.d_finals = states, d_finals
        self.carry = d_finals if states.group.uniform else d_finals[:0]

    def begin(self, segment: Segment) -> tuple[Tensor, Tensor]:
        """Buffers (dS, D) of the segment; what is known of D from outside is in place."""
        sizes, rows = self.states.sizes(segment), self.d_finals
        total = sum(sizes)
        if self.states.group.uniform:
            both = rows.new_empty(total + self.states.width, *rows.shape[1:])
            both[total:].copy_(self.carry)
            return both[:total], both[self.states.width :]
        d_starts, d_ends = rows.new_empty(2, total, *rows.shape[1:]).unbind(0)
        for step, d_end in enumerate(d_ends.split(sizes), segment.first_step + 1):
            going_on = self.states.active(step)
            d_end[going_on:].copy_(rows[going_on : len(d_end)])
        if len(self.carry):
            d_ends.split(sizes)[-1][: len(self.carry)].copy_(self.carry)
        return d_starts, d_ends

    def scan(self, segment: Segment, matrix: Tensor, d_starts: Tensor, d_ends: Tensor) -> None:
        """dS = D M^T + G in reverse order; ``d_starts`` holds G ``[rows, N, N]``."""
        sizes = self.states.sizes(segment)
        starts, ends = d_starts.split(sizes), d_ends.split(sizes)
        steps = matrix.transpose(1, 2).split(sizes)
        for index in reversed(range(len(sizes))):
            starts[index].baddbmm_(ends[index], steps[index])
            if index and not self.states.group.uniform:
                ends[index - 1][: sizes[index]].copy_(starts[index])
        self.carry = starts[0]

    def d_initial(self) -> Tensor:
        """``[size * S, N, N]``: sequences without tokens pass their final state's gradient on."""
        if len(self.carry) == len(self.d_finals):
            return self.carry
        return torch.cat([self.carry, self.d_finals[len(self.carry) :]])
