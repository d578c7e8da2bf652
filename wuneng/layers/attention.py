"""Standard heads: causal softmax attention as a Llama, Qwen or Mistral layer has it.

Legend: B batch, T tokens, D model width, H query heads, G key/value heads, N head size. The layer
stops before the output projection, because the block adds other heads beside ``A``; ``o_proj``
stays a matmul of its own, so that grafted heads leave a converted checkpoint's logits unchanged.
What computes the softmax (sdpa, flash, flex, eager) is transformers' and handed in by the block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wuneng.layers.layout import SequenceLayout
from wuneng.layers.norms import make_query_norm
from wuneng.layers.output_projection import make_output
from wuneng.layers.short_conv import ShortConv

#: One of transformers' attention functions: (module, q, k, v, mask, ...) to output and weights.
Attend = Callable[..., tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class AttentionHeads:
    """What the standard heads hand to the rest of the block.

    Attributes:
        output: A, ``[B, T, H * N]``, before the output projection.
        key: keys before RoPE and norm, ``[B, T, G * N]``.
        value: values, ``[B, T, G * N]``.
        weights: attention probabilities if the backend returns them.
    """

    output: Tensor
    key: Tensor
    value: Tensor
    weights: Tensor | None


class Attention(nn.Module):
    """Multi-head attention: grouped keys and values, RoPE, optional q/k norm and token shift.

    With ``attention_output_gate`` A is multiplied by sigma(x W_g), a number for every channel that
    starts near 1/2, as a control of the state heads' gates (Qiu et al., arXiv 2505.06708).
    """

    #: As those of ``wuneng.layers.state.base.StateHeads``.
    computed_past_call: ClassVar[tuple[str, ...]] = ("_convolve", "_shift", "_split")

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.attention_multiplier or self.head_dim**-0.5
        self.is_causal = True
        self.has_rope = config.has_rope(layer_idx)
        self.sliding_window = config.sliding_window if config.is_sliding(layer_idx) else None
        size, width = config.hidden_size, config.num_attention_heads * self.head_dim
        kv_width = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(size, width, bias=config.attention_bias)
        self.k_proj = nn.Linear(size, kv_width, bias=config.attention_bias)
        self.v_proj = nn.Linear(size, kv_width, bias=config.attention_bias)
        self.o_proj = make_output(width, size, bias=config.attention_output_bias)
        if config.qk_norm:
            of_head = config.qk_norm_over == "head"
            sizes = (self.head_dim, self.head_dim) if of_head else (width, kv_width)
            self.q_norm, self.k_norm = (
                make_query_norm(config.norm, one, config.rms_norm_eps) for one in sizes
            )
        if config.attention_token_shift:
            self.shift_k = nn.Parameter(torch.zeros(kv_width))
            self.shift_v = nn.Parameter(torch.zeros(kv_width))
        if taps := config.attention_short_conv:
            self.q_conv = ShortConv(width, taps, silent=True)
            self.k_conv = ShortConv(kv_width, taps, silent=True)
            self.v_conv = ShortConv(kv_width, taps, silent=True)
        if config.attention_output_gate:
            self.g_proj = nn.Linear(size, width, bias=False)

    def forward(
        self,
        hidden: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Any,
        layout: SequenceLayout,
        attend: Attend,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[AttentionHeads, Tensor | None]:
        """Attention over ``hidden`` ``[B, T, D]``; the block applies the output projection.

        Args:
            position_embeddings: cosines and sines, ``[B or 1, T, R]`` each, of the first R channels
                of a head; the others do not turn.
            attention_mask: whatever ``attend`` takes.
        """
        query, key, value = self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden)
        if self.config.attention_token_shift:
            key, value = self._shift(key, value, layout, past_key_values)
        if self.config.attention_short_conv:
            query, key, value = (
                self._convolve(letter, u, layout, past_key_values)
                for letter, u in (("q", query), ("k", key), ("v", value))
            )
        over = self.config.qk_norm_over if self.config.qk_norm else None
        q, k = (self.q_norm(query), self.k_norm(key)) if over == "width" else (query, key)
        q_BHTN, k_BGTN, v_BGTN = (self._split(u) for u in (q, k, value))
        if over == "head":
            q_BHTN, k_BGTN = self.q_norm(q_BHTN), self.k_norm(k_BGTN)
        if self.has_rope:
            cos, sin = position_embeddings[0].unsqueeze(1), position_embeddings[1].unsqueeze(1)
            q_BHTN, k_BGTN = _rotate(q_BHTN, cos, sin), _rotate(k_BGTN, cos, sin)
        if past_key_values is not None:
            k_BGTN, v_BGTN = past_key_values.update(k_BGTN, v_BGTN, self.layer_idx)
        k_BGTN, v_BGTN = layout.seen_by(k_BGTN, v_BGTN, self.sliding_window)
        output, weights = attend(
            self,
            q_BHTN,
            k_BGTN,
            v_BGTN,
            attention_mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **self._softcap(),
            **kwargs,
        )
        output = output.reshape(*hidden.shape[:-1], -1).contiguous()
        if self.config.attention_output_gate:
            output = output * torch.sigmoid(self.g_proj(hidden))
        return AttentionHeads(output, key, value, weights), weights

    def _softcap(self) -> dict[str, float]:
        """What ``attend`` is told of the cap on its logits.

        Raises:
            ValueError: it is one that would not listen.
        """
        cap, implementation = self.config.attention_softcap, self.config._attn_implementation
        if cap is None:
            return {}
        if not str(implementation).startswith(("eager", "flash", "flex")):
            raise ValueError(
                "attn_implementation: expected eager, flash attention or flex attention where "
                f"attention_softcap is {cap}, got {implementation!r}, which has no soft caps"
            )
        return {"softcap": cap}

    def _split(self, u: Tensor) -> Tensor:
        return u.view(*u.shape[:-1], -1, self.head_dim).transpose(1, 2)

    def _convolve(
        self, letter: str, u: Tensor, layout: SequenceLayout, past_key_values: Any
    ) -> Tensor:
        """The control arm's short convolution of queries, keys or values, before RoPE."""
        slot = None if past_key_values is None else past_key_values.layers[self.layer_idx]
        name = f"attention_conv_{letter}"
        conv: ShortConv = getattr(self, f"{letter}_conv")
        mixed, last = conv(layout.pack(u), layout, None if slot is None else slot.get(name))
        if slot is not None:
            slot.put(name, last)
        return layout.unpack(mixed)

    def _shift(
        self, key: Tensor, value: Tensor, layout: SequenceLayout, past_key_values: Any
    ) -> tuple[Tensor, Tensor]:
        """The control arm's token shift on attention's own keys and values."""
        slot = None if past_key_values is None else past_key_values.layers[self.layer_idx]
        last = None if slot is None else slot.get("attention_shift")
        packed = layout.pack(torch.cat([key, value], dim=-1))
        if slot is not None:
            slot.put("attention_shift", layout.last(packed, last))
        mu = torch.cat([self.shift_k, self.shift_v])
        key, value = layout.unpack(layout.shift(packed, mu, last)).chunk(2, dim=-1)
        return key, value


def _rotate(u: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE as Llama applies it: channels i and i + R/2 of ``[B, heads, T, N]`` turn together.

    Operations come in transformers' order, which gradients equal to the last bit depend on.
    """
    turning = cos.shape[-1]
    if turning < u.shape[-1]:
        return torch.cat([_rotate(u[..., :turning], cos, sin), u[..., turning:]], dim=-1)
    return ((u * cos) + (_quarter_turn(u) * sin)).to(u.dtype)


def _quarter_turn(u: Tensor) -> Tensor:
    half = u.shape[-1] // 2
    first, second = u[..., :half], u[..., half:]
    return torch.cat((-second, first), dim=-1)
