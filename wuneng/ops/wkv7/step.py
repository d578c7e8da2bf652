"""One token of WKV-7: what decoding runs.

The state is read twice and written once; both rank-one updates ride in one batched matmul, so a
step is four kernels whatever the number of heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wuneng.ops.wkv7.reference import Inputs, compute_dtype
from wuneng.ops.wkv7.snapshots import Snapshots


def step(*inputs: *Inputs, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Advance by one token; plain autograd, so it can be differentiated.

    Args:
        inputs: r, w, k, v, a, b ``[B, S, N]``, any floating dtype.
        state: ``[B, S, N, N]`` float32 (float64 with float64 inputs), or None for zero.

    Returns:
        y ``[B, S, N]`` in v's dtype and the new state ``[B, S, N, N]``.
    """
    y, new = _step(inputs, state)
    return y.to(inputs[3].dtype), new


def _step(inputs: Inputs, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """:func:`step` with y in the state's dtype."""
    dtype, v = compute_dtype(*inputs, state), inputs[3]
    batch, heads, size = v.shape
    with torch.autocast(v.device.type, enabled=False):
        r_, w_, k_, v_, a_, b_ = (x.to(dtype).flatten(0, 1) for x in inputs)
        if state is None:
            new = v_.unsqueeze(-1) * k_.unsqueeze(-2)
        else:
            old = state.flatten(0, 1)
            removed = torch.bmm(old, a_.unsqueeze(-1))
            columns = torch.cat([removed, v_.unsqueeze(-1)], dim=-1)
            rows = torch.stack([b_, k_], dim=1)
            new = torch.baddbmm(old * w_.exp().unsqueeze(1), columns, rows)
        y = torch.bmm(new, r_.unsqueeze(-1))
    return y.view(batch, heads, size), new.view(batch, heads, size, size)


def step_with_snapshots(
    *inputs: *Inputs, state: Tensor | None, snapshots: Snapshots
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`step` with the snapshot reads; ``snapshots.weights`` is ``[B, 1, S, 1 + n]``.

    Returns:
        y ``[B, S, N]``, the new state and the ring ``[B, n, S, N, N]`` for the next token. The ring
        is the one that came in wherever no boundary was crossed, not a copy of it.
    """
    (y, new), (r, _, _, v, _, _) = _step(inputs, state), inputs
    batch, count = v.shape[0], snapshots.count
    gamma = snapshots.weights[:, 0].to(new.dtype)
    ring = snapshots.ring
    if ring is None:
        ring = new.new_zeros(batch, count, *new.shape[1:])
    with torch.autocast(v.device.type, enabled=False):
        mixed = gamma[..., :1] * y
        if count:
            reads = torch.matmul(ring, r.to(new.dtype)[:, None, :, :, None]).squeeze(-1)
            mixed = mixed + (gamma[..., 1:].permute(0, 2, 1).unsqueeze(-1) * reads).sum(1)
    return mixed.to(v.dtype), new, _advance(ring, new, snapshots)


def _advance(ring: Tensor, state: Tensor, snapshots: Snapshots) -> Tensor:
    """Push ``state`` into the rings of those sequences that now stand on a boundary."""
    seen = snapshots.position
    if snapshots.count == 0 or seen is None:  # the first token never ends on a boundary
        return ring
    crossed = (seen + 1) % snapshots.every == 0
    # On the CPU the test costs nothing and saves a copy of the ring on almost every token.
    if crossed.device.type == "cpu" and not torch.compiler.is_compiling() and not crossed.any():
        return ring
    pushed = torch.cat([state.unsqueeze(1), ring[:, :-1]], dim=1)
    return torch.where(crossed.to(ring.device).view(-1, 1, 1, 1, 1), pushed, ring)
