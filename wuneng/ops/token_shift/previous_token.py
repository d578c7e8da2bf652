"""The token before each token and each sequence's last, across calls and packed documents."""

from __future__ import annotations

import torch
from torch import Tensor


def previous_token(x: Tensor, carry: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    """Shift by one token within each sequence.

    Args:
        x: ``[B, T, C]``, or ``[1, total, C]`` with ``cu_seqlens``.
        carry: ``[sequences, C]`` each sequence's last token of an earlier call; None is zero.
        cu_seqlens: ``[sequences + 1]`` int64 boundaries; None when every row is a sequence.

    Returns:
        x_{t-1} in x's shape and dtype.
    """
    if cu_seqlens is None:
        first = torch.zeros_like(x[:, :1]) if carry is None else carry[:, None].to(x.dtype)
        return torch.cat([first, x[:, :-1]], dim=1)
    # Where empty sequences would start is a row past the end, so that nobody has to ask the device
    # which ones they are.
    total = x.shape[1]
    starts = torch.where(cu_seqlens[1:] > cu_seqlens[:-1], cu_seqlens[:-1], total)
    first = x.new_zeros(starts.shape[0], x.shape[-1]) if carry is None else carry.to(x.dtype)
    shifted = torch.cat([x.new_zeros(1, x.shape[-1]), x[0]], dim=0)
    return shifted.index_copy(0, starts.long(), first)[:total].unsqueeze(0)


def last_token(x: Tensor, carry: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    """Each sequence's last token ``[sequences, C]``; an empty sequence keeps its carry.

    Arguments as :func:`previous_token`.
    """
    if cu_seqlens is None:
        return x[:, -1]
    if x.shape[1] == 0:  # pads alone
        sequences = cu_seqlens.numel() - 1
        return x.new_zeros(sequences, x.shape[-1]) if carry is None else carry.to(x.dtype)
    empty = cu_seqlens[1:] == cu_seqlens[:-1]
    taken = x[0, (cu_seqlens[1:] - 1).clamp(min=0)]
    kept = torch.zeros_like(taken) if carry is None else carry.to(taken.dtype)
    return torch.where(empty[:, None], kept, taken)
