"""One segment of WKV-7 in matrix form: the hand-derived gradients.

Notation of ``chunk_algebra``; D ``[R, N, N]`` is the gradient of the state after a chunk and
D^ = D diag(e^{G_C}); A_ab ... A_rk are the four quarters of the scores, W = T a~.

    dU = A_rb^T dY + b^ D^^T              dZ = T^T dU
    dV = A_rk^T dY + A_ak^T dZ + k^ D^^T
    dS = D M^T + dY^T (r~ + A_rb W)                                        before the chunk
    dA = visible( [dZ; dY] [U; V]^T )
    d[a~; r~] = dA [b^; k^] + [dZ; dY] S           d[b^; k^] = dA^T [a~; r~] + [U; V] D^

With T's own identity dA_ab = tril(dZ U^T, -1) no product T^T (dT) T^T is needed. Only dS has to run
in order, again one product per chunk. Log decays gather from every place G_t enters:

    dG_{t-1} += a_t da_t      dG_t += r_t dr_t - b_t db_t - k_t dk_t      dG_C += sum_v S_C D

and dw is the sum of dG from t to C. Checked against float64 autograd of the recurrence.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wuneng.ops.wkv7.chunk_algebra import Factors, keep_visible_


def reverse_transition(factors: Factors, starts: Tensor, d_y: Tensor, d_starts: Tensor) -> Tensor:
    """Prepare the reverse scan, and complete ``factors.removed_values`` with U.

    Args:
        factors: of this segment.
        starts: ``[R, N, N]`` states before each chunk.
        d_y: ``[R, C, N]``.
        d_starts: ``[R, N, N]``, receives the part of dS that does not depend on D.

    Returns:
        M ``[R, N, N]``.
    """
    chunk, scores, writes = factors.chunk, factors.scores, factors.writes
    solved = torch.bmm(factors.inverse, factors.reads[:, :chunk])
    matrix = torch.bmm(solved.transpose(1, 2), writes[:, :chunk] * factors.end_decay)
    matrix.diagonal(dim1=1, dim2=2).add_(factors.end_decay.squeeze(1))
    effective = torch.baddbmm(factors.reads[:, chunk:], scores[:, chunk:, :chunk], solved)
    torch.bmm(d_y.transpose(1, 2), effective, out=d_starts)
    removal = torch.bmm(scores[:, :chunk, chunk:], factors.values)
    removal.baddbmm_(factors.reads[:, :chunk], starts.transpose(1, 2))
    factors.removed_values[:, :chunk].copy_(torch.bmm(factors.inverse, removal))
    return matrix


def input_gradients(
    factors: Factors,
    starts: Tensor,
    ends: Tensor,
    d_both: Tensor,
    d_ends: Tensor,
    spare: Tensor,
    targets: list[Tensor],
) -> None:
    """Write the gradients of r, w, k, v, a, b into ``targets``, views ``[..., S, C, N]``.

    Buffers are written over as soon as they have served, ``factors.scores`` among them: what is at
    work stays in the cache, and memory is not given back and faulted in again at every segment.

    Args:
        starts, ends: ``[R, N, N]`` states before and after each chunk.
        d_both: ``[R, 2C, N]``, room for dZ above dY.
        d_ends: ``[R, N, N]``, D of each chunk.
        spare: ``[R, N, N]``, a buffer that is free.
    """
    chunk, scores, removed_values = factors.chunk, factors.scores, factors.removed_values
    d_scaled = torch.mul(d_ends, factors.end_decay, out=spare)
    from_read = torch.bmm(scores[:, chunk:].transpose(1, 2), d_both[:, chunk:])
    from_read.baddbmm_(factors.writes, d_scaled.transpose(1, 2))
    d_removal = torch.bmm(factors.inverse.transpose(1, 2), from_read[:, :chunk])
    d_values = torch.baddbmm(
        from_read[:, chunk:], scores[:, :chunk, chunk:].transpose(1, 2), d_removal
    )
    d_both[:, :chunk].copy_(d_removal)
    d_scores = keep_visible_(torch.bmm(d_both, removed_values.transpose(1, 2), out=scores))
    d_reads = torch.bmm(d_scores, factors.writes, out=from_read).baddbmm_(d_both, starts)
    d_writes = torch.bmm(d_scores.transpose(1, 2), factors.reads, out=d_both)
    d_writes.baddbmm_(removed_values, d_scaled)
    from_states = torch.mul(ends, d_ends, out=spare).sum(1)
    d_log_decay = _log_decay_gradient(factors, d_reads, d_writes, from_states)
    _unscale(factors, d_reads, d_writes, d_values, d_log_decay, targets)


def _log_decay_gradient(
    factors: Factors, d_reads: Tensor, d_writes: Tensor, from_states: Tensor
) -> Tensor:
    """dw ``[R, C, N]``; ``from_states`` ``[R, N]`` is the sum over values of S_C D."""
    chunk = factors.chunk
    reads, writes = factors.reads, factors.writes
    total = d_reads[:, chunk:] * reads[:, chunk:]
    total.addcmul_(d_writes[:, :chunk], writes[:, :chunk], value=-1)
    total.addcmul_(d_writes[:, chunk:], writes[:, chunk:], value=-1)
    # Row t of the a~ part belongs to G_{t-1}; row 1 to G_0, which is constant.
    total[:, :-1].addcmul_(d_reads[:, 1:chunk], reads[:, 1:chunk])
    total[:, -1].add_(from_states)
    later = torch.ones(chunk, chunk, dtype=total.dtype, device=total.device).triu_()
    return torch.bmm(later.expand(total.shape[0], -1, -1), total)


def _unscale(
    factors: Factors,
    d_reads: Tensor,
    d_writes: Tensor,
    d_values: Tensor,
    d_log_decay: Tensor,
    targets: list[Tensor],
) -> None:
    """From the decayed vectors' gradients to the inputs', written straight into place."""
    chunk = factors.chunk
    d_r, d_w, d_k, d_v, d_a, d_b = targets
    lead = d_v.shape[:-2]

    def view(x: Tensor) -> Tensor:
        return x.unflatten(0, lead)

    decay = view(factors.decay)
    torch.mul(view(d_reads[:, :chunk]), decay[..., :-1, :], out=d_a)
    torch.mul(view(d_reads[:, chunk:]), decay[..., 1:, :], out=d_r)
    torch.div(view(d_writes[:, :chunk]), decay[..., 1:, :], out=d_b)
    torch.div(view(d_writes[:, chunk:]), decay[..., 1:, :], out=d_k)
    d_v.copy_(view(d_values))
    d_w.copy_(view(d_log_decay))
