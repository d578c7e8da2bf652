"""WKV-7 token by token, as it is written on paper: the oracle that every other backend must match.

Legend: B batch, T tokens, S heads, N head size. State rows are values, columns are keys. The
recurrence is RWKV-7's (RWKV-LM, ``rwkv_v7_numpy.py``), with a = -kappa, b = kappa * rate:

    S_t = S_{t-1} diag(exp w_t) + (S_{t-1} a_t^T) b_t + v_t^T k_t          y_t = r_t S_t^T

Plain autograd, any device, float32 inside (float64 when an input is float64): slow and clear.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from wuneng.ops.wkv7.snapshots import Snapshots, boundary

#: r, w, k, v, a, b of the recurrence, in this order.
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
#: The same in torch's language, for operators that torch is told of.
INPUTS_SCHEMA = "Tensor r, Tensor w, Tensor k, Tensor v, Tensor a, Tensor b"


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The dtype of the state and of all arithmetic: float64 if any input is, else float32."""
    doubles = any(t is not None and t.dtype == torch.float64 for t in tensors)
    return torch.float64 if doubles else torch.float32


def check_boundaries(ends: tuple[int, ...], tokens: int) -> None:
    """Raise ValueError unless ``ends`` is a valid ``cu_seqlens`` for T ``tokens``."""
    falls = [i for i in range(1, len(ends)) if ends[i] < ends[i - 1]]
    if falls:
        at = falls[0]
        raise ValueError(
            f"cu_seqlens must not decrease, got {ends[at - 1]} then {ends[at]} at index {at}"
        )
    if ends[0] != 0 or ends[-1] != tokens:
        raise ValueError(f"cu_seqlens must run from 0 to T = {tokens}, got {ends[0]} to {ends[-1]}")


def check_position(positions: tuple[int, ...] | None) -> None:
    """Raise ValueError unless ``positions``, tokens seen before, are counts."""
    if positions is not None and min(positions) < 0:
        raise ValueError(f"snapshots.position must not be negative, got {min(positions)}")


def wkv7_reference(
    *inputs: *Inputs,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    snapshots: Snapshots | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The recurrence over whole sequences; arguments as :func:`wuneng.ops.wkv7`, unchecked.

    Returns:
        y ``[B, T, S, N]`` in v's dtype, the final state ``[B or sequences, S, N, N]`` and, with
        snapshots, the final ring ``[B or sequences, n, S, N, N]``.
    """
    dtype, v = compute_dtype(*inputs, initial_state), inputs[3]
    wide = [x.to(dtype) for x in inputs]
    batch, _, heads, size = v.shape
    if cu_seqlens is None:
        sequences = batch
    else:
        sequences = cu_seqlens.numel() - 1
    if snapshots is not None and snapshots.position is not None:
        check_position(tuple(snapshots.position.tolist()))
    if initial_state is None:
        initial_state = v.new_zeros(sequences, heads, size, size, dtype=dtype)
    if cu_seqlens is None and snapshots is None:
        y, states = _loop(wide, initial_state, every=False)
        return y.to(v.dtype), states[-1], None
    ys, finals, rings = [], [], []
    for index, (row, span) in enumerate(_spans(v, cu_seqlens)):
        own = [x[row : row + 1, span] for x in wide]
        y, states = _loop(own, initial_state[index : index + 1])
        if snapshots is not None:
            weights = snapshots.weights[row : row + 1, span].to(dtype)
            y, ring = _read_snapshots(own[0], y, states, weights, snapshots, index)
            rings.append(ring)
        ys.append(y)
        finals.append(states[-1])
    y = torch.cat(ys, dim=0 if cu_seqlens is None else 1).to(v.dtype)
    return y, torch.cat(finals), torch.stack(rings) if snapshots is not None else None


def _loop(inputs: list[Tensor], state: Tensor, every: bool = True) -> tuple[Tensor, list[Tensor]]:
    """y ``[B, T, S, N]`` and the states ``[B, S, N, N]`` before the first and after every token;
    without ``every`` the last one alone, which does not hold the others in memory."""
    ys, states = [], [state]
    for r, w, k, v, a, b in zip(*(x.unbind(1) for x in inputs), strict=True):
        removed = (state @ a.unsqueeze(-1)) * b.unsqueeze(-2)
        state = state * w.exp().unsqueeze(-2) + removed + v.unsqueeze(-1) * k.unsqueeze(-2)
        ys.append((state @ r.unsqueeze(-1)).squeeze(-1))
        if not every:
            states.clear()
        states.append(state)
    return (torch.stack(ys, 1) if ys else inputs[3]), states


def _spans(v: Tensor, cu_seqlens: Tensor | None) -> list[tuple[int, slice]]:
    """Batch row and tokens of every sequence."""
    if cu_seqlens is None:
        return [(row, slice(0, v.shape[1])) for row in range(v.shape[0])]
    ends = tuple(cu_seqlens.tolist())
    check_boundaries(ends, v.shape[1])
    return [(0, slice(start, end)) for start, end in pairwise(ends)]


def _read_snapshots(
    r: Tensor,
    y: Tensor,
    states: list[Tensor],
    weights: Tensor,
    snapshots: Snapshots,
    sequence: int,
) -> tuple[Tensor, Tensor]:
    """Mix the reads of one sequence ``[1, T, S, N]``; also its ring ``[n, S, N, N]`` at the end."""
    every, seen = snapshots.every, 0
    if snapshots.position is not None:
        seen = int(snapshots.position[sequence])

    def state_at(position: int, newest: int) -> Tensor:
        tokens = boundary(position, newest, every)
        if tokens <= 0:
            return torch.zeros_like(states[0][0])
        if tokens > seen or snapshots.ring is None:
            return states[tokens - seen][0]
        return snapshots.ring[sequence, seen // every - tokens // every]

    mixed = []
    for t in range(y.shape[1]):
        total = weights[:, t, :, :1] * y[:, t]
        for j in range(snapshots.count):
            read = (state_at(seen + t, j) @ r[0, t].unsqueeze(-1)).squeeze(-1)
            total = total + weights[:, t, :, 1 + j, None] * read
        mixed.append(total)
    last = seen + y.shape[1]
    ring = [state_at(last, j) for j in range(snapshots.count)]
    ring_shape = (snapshots.count, *states[0].shape[1:])
    return (
        torch.stack(mixed, 1) if mixed else y,
        torch.stack(ring) if ring else states[0].new_zeros(ring_shape),
    )
