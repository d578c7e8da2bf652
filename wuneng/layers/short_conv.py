"""A short causal convolution over tokens, channel by channel: what delta nets mix neighbours with.

    y_t = sum_j weight_j * x_{t-K+1+j}        x before the first token is zero

Legend: T tokens, C channels, K taps; the last tap weighs the token itself, as in a ``conv1d``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import initialization as init

from wuneng.layers.layout import SequenceLayout


class ShortConv(nn.Module):
    """``weight`` ``[C, K]``, without a bias.

    Args:
        silent: start as the identity, where the layer must compute at first what it does without.
    """

    def __init__(self, channels: int, taps: int, *, silent: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, taps))
        self.silent = silent

    def initialise(self) -> None:
        """The last tap alone, or uniform as a ``conv1d``'s weights."""
        channels, taps = self.weight.shape
        if self.silent:
            identity = torch.zeros(channels, taps)
            identity[:, -1] = 1.0
            init.copy_(self.weight, identity)
        else:
            init.uniform_(self.weight, -(taps**-0.5), taps**-0.5)

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
