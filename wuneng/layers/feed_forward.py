"""Feed-forward layers: SwiGLU (Llama), a plain two-matrix MLP, and RWKV-7's channel mix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from wuneng.layers.layout import SequenceLayout
from wuneng.layers.output_projection import make_output


class SwiGLU(nn.Module):
    """``down(act(gate x) * up x)``; parameter names as in Llama checkpoints."""

    def __init__(self, size: int, width: int, act: nn.Module, bias: bool) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(size, width, bias=bias)
        self.up_proj = nn.Linear(size, width, bias=bias)
        self.down_proj = make_output(width, size, bias=bias)
        self.act = act

    def forward(self, x: Tensor, layout: SequenceLayout, carry: Any = None) -> Tensor:
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


class MLP(nn.Module):
    """``down(act(up x))``: the m_l = W_out sigma(W_in gamma(.)) of the restated paper."""

    def __init__(self, size: int, width: int, act: nn.Module, bias: bool) -> None:
        super().__init__()
        self.up_proj = nn.Linear(size, width, bias=bias)
        self.down_proj = make_output(width, size, bias=bias)
        self.act = act

    def forward(self, x: Tensor, layout: SequenceLayout, carry: Any = None) -> Tensor:
        return self.down_proj(self.act(self.up_proj(x)))


class ChannelMix(nn.Module):
    """RWKV-7's ``ffn``: ``value(relu(key(shift(x)))^2)`` with one token shift.

    ``carry`` is a cache slot holding each sequence's last input ``[sequences, D]``.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.x_k = nn.Parameter(torch.zeros(size))
        self.key = nn.Linear(size, width, bias=False)
        self.value = nn.Linear(width, size, bias=False)

    def forward(self, x: Tensor, layout: SequenceLayout, carry: Any = None) -> Tensor:
        packed = layout.pack(x)
        last = None if carry is None else carry.get("ffn_shift")
        if carry is not None:
            carry.put("ffn_shift", layout.last(packed, last))
        key = self.key(layout.shift(packed, self.x_k, last))
        return layout.unpack(self.value(torch.relu(key).square()))


def make_feed_forward(
    kind: str, size: int, width: int, act: Callable[[], nn.Module], bias: bool
) -> nn.Module:
    """The block's feed-forward layer of the given kind: ``swiglu``, ``mlp`` or ``rwkv7``.

    ``act`` makes the activation of the first two.
    """
    if kind == "swiglu":
        return SwiGLU(size, width, act(), bias)
    if kind == "mlp":
        return MLP(size, width, act(), bias)
    return ChannelMix(size, width)
