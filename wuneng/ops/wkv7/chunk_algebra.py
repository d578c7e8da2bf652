"""One segment of WKV-7 in matrix form: the forward algebra.

Legend: R rows (a row is one chunk of one head), C tokens of a chunk, N head size, t and s tokens of
the chunk counted from 1, G_t the sum of log decays up to and including t, G_0 = 0. Everything is
``[R, ., .]`` and contiguous, so that every product is one batched matmul.

    a~_t = a_t e^{G_{t-1}}   r~_t = r_t e^{G_t}   b^_t = b_t e^{-G_t}   k^_t = k_t e^{-G_t}
    T = (I - tril(a~ b^T, -1))^{-1}                                       unit lower triangular
    U = T (a~ S^T + tril(a~ k^T, -1) V)                                   u_t = S_{t-1} a_t^T
    Y = r~ S^T + tril(r~ b^T) U + tril(r~ k^T) V
    S_C = (S + U^T b^ + V^T k^) diag(e^{G_C})

S, ``[N_value, N_key]``, is the state before the chunk. Eliminating U makes the step from chunk to
chunk a single product, which is all that has to run in order:

    S_C = S M + F
    M = ( I + a~^T T^T b^ ) diag(e^{G_C})          F = V^T (k^ + A_ak^T T^T b^) diag(e^{G_C})

It spends more arithmetic than carrying U along, and far fewer small operations, which on every
device is the better bargain. e^{-G_C} must fit the dtype: with RWKV-7's decays it is at most e^19.4
for C = 32, so nothing is centred.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

INVERSE_BASE = 8


@dataclass
class Factors:
    """What both passes need of a segment.

    Attributes:
        decay: ``[R, C + 1, N]``, e^{G_0} ... e^{G_C}.
        reads: ``[R, 2C, N]``, a~ above r~.
        writes: ``[R, 2C, N]``, b^ above k^.
        removed_values: ``[R, 2C, N]``, room for U above V; only V is filled in here.
        scores: ``[R, 2C, 2C]``, reads times writes^T where a token may look, zero elsewhere:
            A_ab, A_ak (strictly earlier) above A_rb, A_rk (up to now).
        inverse: ``[R, C, C]``, T.
    """

    decay: Tensor
    reads: Tensor
    writes: Tensor
    removed_values: Tensor
    scores: Tensor
    inverse: Tensor

    @property
    def chunk(self) -> int:
        return self.inverse.shape[1]

    @property
    def values(self) -> Tensor:
        """``[R, C, N]``, V."""
        return self.removed_values[:, self.chunk :]

    @property
    def end_decay(self) -> Tensor:
        """``[R, 1, N]``, e^{G_C}."""
        return self.decay[:, -1:]


def factorise(inputs: list[Tensor], dtype: torch.dtype) -> Factors:
    """The state-independent part, from views r, w, k, v, a, b ``[..., S, C, N]``."""
    r, w, k, v, a, b = inputs
    lead, (chunk, size) = v.shape[:-2], v.shape[-2:]
    rows = lead.numel()

    def buffer(length: int) -> tuple[Tensor, Tensor]:
        flat = torch.empty(rows, length, size, dtype=dtype, device=v.device)
        return flat, flat.view(*lead, length, size)

    # Every input is read once, straight from the caller's layout, by the operation that needs it.
    decay, decay_ = buffer(chunk + 1)
    decay_[..., :1, :].zero_()
    torch.cumsum(w, dim=-2, dtype=dtype, out=decay_[..., 1:, :])
    decay.exp_()
    reads, reads_ = buffer(2 * chunk)
    torch.mul(a, decay_[..., :-1, :], out=reads_[..., :chunk, :])
    torch.mul(r, decay_[..., 1:, :], out=reads_[..., chunk:, :])
    writes, writes_ = buffer(2 * chunk)
    torch.div(b, decay_[..., 1:, :], out=writes_[..., :chunk, :])
    torch.div(k, decay_[..., 1:, :], out=writes_[..., chunk:, :])
    removed_values, removed_values_ = buffer(2 * chunk)
    removed_values_[..., chunk:, :].copy_(v)
    scores = keep_visible_(torch.bmm(reads, writes.transpose(1, 2)))
    inverse = invert(scores[:, :chunk, :chunk])
    return Factors(decay, reads, writes, removed_values, scores, inverse)


def transition(factors: Factors, ends: Tensor) -> Tensor:
    """M ``[R, N, N]``; F goes into ``ends`` ``[R, N, N]``."""
    chunk, writes, scores = factors.chunk, factors.writes, factors.scores
    solved = torch.bmm(factors.inverse.transpose(1, 2), writes[:, :chunk])
    added = torch.baddbmm(writes[:, chunk:], scores[:, :chunk, chunk:].transpose(1, 2), solved)
    torch.bmm(factors.values.transpose(1, 2), added.mul_(factors.end_decay), out=ends)
    matrix = torch.bmm(factors.reads[:, :chunk].transpose(1, 2), solved.mul_(factors.end_decay))
    matrix.diagonal(dim1=1, dim2=2).add_(factors.end_decay.squeeze(1))
    return matrix


def read_states(factors: Factors, starts: Tensor) -> Tensor:
    """Y ``[R, C, N]`` from the states ``[R, N, N]`` before each chunk."""
    chunk, scores = factors.chunk, factors.scores
    both = torch.bmm(scores[:, :, chunk:], factors.values)
    both.baddbmm_(factors.reads, starts.transpose(1, 2))
    removed = torch.bmm(factors.inverse, both[:, :chunk])
    return torch.baddbmm(both[:, chunk:], scores[:, chunk:, :chunk], removed)


def keep_visible_(scores: Tensor) -> Tensor:
    """Zero, in place, what a token may not see in ``[R, 2C, 2C]`` scores or their gradients.

    The mask is applied to the bits: as fast as a product, and unlike it right where a hidden entry
    has overflowed (0 * inf is NaN).
    """
    bits = torch.int64 if scores.dtype == torch.float64 else torch.int32
    scores.view(bits).bitwise_and_(_visible(scores.shape[-1] // 2, bits, scores.device))
    return scores


@lru_cache(maxsize=32)
def _visible(chunk: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``[2C, 2C]``: all bits set where row (a; r) may see column (b; k), else none."""
    token = torch.arange(chunk, device=device)
    before = token[:, None] > token
    until = token[:, None] >= token
    seen = torch.cat([before.repeat(1, 2), until.repeat(1, 2)])
    return -seen.to(dtype)


def invert(strict: Tensor) -> Tensor:
    """(I - A)^{-1} of strictly lower triangular A ``[R, C, C]``, C a power of two.

    Blocks on the diagonal are inverted and merged in pairs: [[P, 0], [Q X P, Q]] for inverses P, Q
    of the halves and X below the diagonal. Only products of inverses with A appear, never powers of
    A: on runs of identical tokens those reach 10^17 while the inverse stays below 1, and a Neumann
    series loses every digit.
    """
    chunk = strict.shape[-1]
    if chunk <= INVERSE_BASE:
        return _invert_small(strict)
    half = chunk // 2
    corners = torch.cat([strict[:, :half, :half], strict[:, half:, half:]])
    upper, lower = invert(corners).chunk(2)
    out = strict.new_zeros(strict.shape)
    out[:, :half, :half] = upper
    out[:, half:, half:] = lower
    out[:, half:, :half] = torch.bmm(lower, torch.bmm(strict[:, half:, :half], upper))
    return out


def _invert_small(strict: Tensor) -> Tensor:
    """The same merging, on masked whole blocks: T <- T + T (A within the merged pairs) T."""
    chunk, width = strict.shape[-1], 2
    masks = _pair_masks(chunk, strict.dtype, strict.device)
    inverse = strict * masks[0]
    inverse.diagonal(dim1=1, dim2=2).fill_(1.0)
    while width < chunk:
        between = torch.bmm(strict * masks[width.bit_length() - 1], inverse)
        inverse = torch.baddbmm(inverse, inverse, between)
        width *= 2
    return inverse


@lru_cache(maxsize=32)
def _pair_masks(chunk: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """For widths 1, 2, 4, ... : rows in the second, columns in the first block of a pair."""
    token = torch.arange(chunk, device=device)
    masks, width = [], 1
    while width < chunk:
        block = token // width
        pair = block[:, None] // 2 == block // 2
        masks.append((pair & (block[:, None] % 2 == 1) & (block % 2 == 0)).to(dtype))
        width *= 2
    return tuple(masks)
