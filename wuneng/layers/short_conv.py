"""A short causal convolution over tokens, channel by channel: what delta nets mix neighbours with.

    y_t = sum_j weight_j * x_{t-K+1+j}        x before the first token is zero

Legend: T tokens, C channels, K taps; the last tap weighs the token itself, as in a ``conv1d``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wuneng.layers.layout import SequenceLayout


class ShortConv(nn.Module):
    """``weight`` ``[C, K]``, without a bias."""

    def __init__(self, channels: int, taps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, taps))

    def forward(
        self, x: Tensor, layout: SequenceLayout, carry: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Convolve each sequence by itself.

        Args:
            x: packed values ``[B, T, C]``, or ``[1, total, C]``.
            carry: ``[sequences, (K - 1) * C]``: the tokens before, latest first; None is zero.

        Returns:
            The shape of ``x``, and the carry of the next call.
        """
        taps = self.weight.to(x.dtype).flip(1).unbind(1)
        before = [None] * (len(taps) - 1) if carry is None else carry.chunk(len(taps) - 1, dim=-1)
        y, earlier, ends = x * taps[0], x, []
        for tap, last in zip(taps[1:], before, strict=True):
            ends.append(layout.last(earlier, last))
            earlier = layout.previous(earlier, last)
            y = torch.addcmul(y, earlier, tap)
        return y, torch.cat(ends, dim=-1)


def identity_taps(weight: Tensor) -> Tensor:
    """Taps ``[C, K]`` that leave every token as it is."""
    taps = torch.zeros(weight.shape, dtype=torch.float32)
    taps[:, -1] = 1.0
    return taps
