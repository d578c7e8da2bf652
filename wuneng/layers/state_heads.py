"""State-driven heads: RWKV-7's recurrence, fed by attention's projections or by its own.

Legend: B batch, T tokens, D model width, S state heads, N head size. Equations: RWKV-7
(``rwkv_v7_numpy.py`` of RWKV-LM); tensor names and shapes are RWKV-LM's where it has them.

``token_shift="post"`` shifts r, k and v after projection (no extra matmul); ``"pre"`` is RWKV-7's
own form with six shifts of the input. With ``"pre"``, own keys and values, an output gate and the
value residual the layer is RWKV-7's time mix exactly.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from wuneng.layers.attention import AttentionHeads
from wuneng.layers.layout import SequenceLayout
from wuneng.layers.norms import HeadGroupNorm
from wuneng.ops import Snapshots, state_inputs, wkv7

LOG_DECAY_SCALE = -math.exp(-0.5)  # log w = -e^{-1/2} sigma(.), so one step keeps at least 0.545


class StateHeads(nn.Module):
    """RWKV-7 heads of one layer; ``forward`` returns their readout R ``[B, T, S, N]``.

    ``readout`` is an identity that the raw state read y passes through, so that evaluation controls
    can silence or permute what the state says without touching anything else.
    """

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.heads, self.head_dim = config.num_state_heads, config.state_head_dim
        size, width = config.hidden_size, self.heads * self.head_dim
        self.width = width
        self.r_proj = nn.Linear(size, width, bias=False)
        if config.state_key_source == "own":
            self.k_proj = nn.Linear(size, width, bias=False)
        if config.state_value_source == "own":
            self.v_proj = nn.Linear(size, width, bias=False)
        elif config.state_value_source == "attention_output":
            self.v_proj = nn.Linear(config.num_attention_heads * config.head_dim, width, bias=False)
        if config.state_removal_key == "own":
            self.kappa_proj = nn.Linear(size, width, bias=False)
        self._add_token_shift(size, width)
        self._add_low_rank(size, width)
        self.k_k = nn.Parameter(torch.empty(width))
        self.k_a = nn.Parameter(torch.empty(width))
        if config.state_bonus:
            self.r_k = nn.Parameter(torch.empty(self.heads, self.head_dim))
        if config.state_norm == "group":
            self.g_norm = HeadGroupNorm(self.heads, self.head_dim, config.state_norm_eps)
        if config.snapshots:
            self.snapshot_proj = nn.Linear(size, self.heads * (1 + config.snapshots))
        self.readout = nn.Identity()

    def _add_token_shift(self, size: int, width: int) -> None:
        config = self.config
        if config.token_shift == "post":
            for letter in config.token_shift_on:
                self.register_parameter(f"shift_{letter}", nn.Parameter(torch.empty(width)))
        elif config.token_shift == "pre":
            for letter in self.shifted_inputs():
                self.register_parameter(f"x_{letter}", nn.Parameter(torch.empty(size)))

    def shifted_inputs(self) -> str:
        """Which of RWKV-7's inputs r, w, k, v, a, g this layer projects itself."""
        config = self.config
        letters = "rwa"
        letters += "k" if config.state_key_source == "own" else ""
        letters += "v" if config.state_value_source == "own" else ""
        return letters + ("g" if config.state_output_gate else "")

    def _add_low_rank(self, size: int, width: int) -> None:
        """w, a (always), v (value residual, after layer 0) and g (output gate): bias, down, up."""
        config = self.config

        def add(name: str, rank: int, bias: bool = True) -> None:
            if bias:
                self.register_parameter(f"{name}0", nn.Parameter(torch.empty(width)))
            self.register_parameter(f"{name}1", nn.Parameter(torch.empty(size, rank)))
            self.register_parameter(f"{name}2", nn.Parameter(torch.empty(rank, width)))

        add("w", config.decay_rank)
        add("a", config.rate_rank)
        if config.state_value_residual and self.layer_idx > 0:
            add("v", config.value_rank)
        if config.state_output_gate:
            add("g", config.gate_rank, bias=False)

    def forward(
        self,
        hidden: Tensor,
        attention: AttentionHeads | None,
        first_value: Tensor | None,
        layout: SequenceLayout,
        slot: Any = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Run the heads over ``hidden`` ``[B, T, D]``.

        Args:
            attention: the standard heads' keys, values and output; None without attention.
            first_value: layer 0's values for the value residual (packed order), None in layer 0.
            layout: which tokens form which sequence.
            slot: this layer's cache, or None.

        Returns:
            R ``[B, T, S, N]`` and the first layer's values, to hand on.
        """
        x = layout.pack(hidden)
        inputs = self._inputs(x, layout, slot)
        r, k, v = self._receptance_key_value(x, inputs, attention, layout, slot)
        if self.config.state_value_residual:
            if first_value is None:
                first_value = v
            else:
                mix = torch.sigmoid(self._low_rank("v", inputs["v"]))
                v = torch.lerp(v, first_value, mix.to(v.dtype))
        decay = torch.tanh(inputs["w"] @ self.weight_of("w1")) @ self.weight_of("w2")
        log_w = LOG_DECAY_SCALE * torch.sigmoid(self.weight_of("w0").float() + decay.float())
        source = self.kappa_proj(x) if self.config.state_removal_key == "own" else k
        r, k, v, log_w, rate_logit, source = (
            self._heads(u) for u in (r, k, v, log_w, self._low_rank("a", inputs["a"]), source)
        )
        weights = self._heads(self.k_k), self._heads(self.k_a)
        k, a, b = state_inputs(k, source, rate_logit, *weights, self.config.state_a_max)
        y = self._recurrence((r, log_w, k, v, a, b), x, layout, slot)
        y = self._epilogue(self.readout(y), r, k, v, inputs)
        return layout.unpack(y.to(hidden.dtype)), first_value

    def _epilogue(
        self, y: Tensor, r: Tensor, k: Tensor, v: Tensor, inputs: dict[str, Tensor]
    ) -> Tensor:
        """Group norm, the bonus for the present token, the output gate: R from the state read y."""
        if self.config.state_norm == "group":
            y = self.g_norm(y)
        if self.config.state_bonus:
            y = y + (r * k * self.r_k).sum(-1, keepdim=True) * v
        if self.config.state_output_gate:
            gate = torch.sigmoid(inputs["g"] @ self.weight_of("g1")) @ self.weight_of("g2")
            y = y * self._heads(gate)
        return y

    def weight_of(self, name: str) -> Tensor:
        """A parameter of this layer by its name (they are registered by loops)."""
        return self.get_parameter(name)

    def _low_rank(self, letter: str, x: Tensor) -> Tensor:
        """bias + (x down) up."""
        down, up = self.weight_of(f"{letter}1"), self.weight_of(f"{letter}2")
        return self.weight_of(f"{letter}0") + (x @ down) @ up

    def _heads(self, u: Tensor) -> Tensor:
        return u.unflatten(-1, (self.heads, self.head_dim))

    def _inputs(self, x: Tensor, layout: SequenceLayout, slot: Any) -> dict[str, Tensor]:
        """What each projection reads: the input itself, or RWKV-7's six shifted mixtures of it."""
        if self.config.token_shift != "pre":
            return dict.fromkeys("rwkvag", x)
        last = None if slot is None else slot.get("shift")
        previous = layout.previous(x, last)
        if slot is not None:
            slot.put("shift", layout.last(x, last))
        delta = previous - x
        return {
            letter: torch.addcmul(x, delta, getattr(self, f"x_{letter}").to(x.dtype))
            for letter in self.shifted_inputs()
        } | ({"v": x} if self.config.state_value_source != "own" else {})

    def _receptance_key_value(
        self,
        x: Tensor,
        inputs: dict[str, Tensor],
        attention: AttentionHeads | None,
        layout: SequenceLayout,
        slot: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """r, k, v ``[.., S * N]`` from their sources, shifted if the shift follows projection."""
        config = self.config
        r = self.r_proj(inputs["r"])
        if config.state_key_source == "own":
            k = self.k_proj(inputs["k"])
        else:
            assert attention is not None
            k = self._pick(layout.pack(attention.key))
        if config.state_value_source == "own":
            v = self.v_proj(inputs["v"])
        elif config.state_value_source == "attention":
            assert attention is not None
            v = self._pick(layout.pack(attention.value))
        else:
            assert attention is not None
            v = self.v_proj(layout.pack(attention.output))
        if config.token_shift != "post" or not config.token_shift_on:
            return r, k, v
        return self._shift_projections({"r": r, "k": k, "v": v}, layout, slot)

    def _pick(self, u: Tensor) -> Tensor:
        """Attention's G key/value heads onto S state heads: the first S, wrapping if S > G."""
        if u.shape[-1] < self.width:
            u = u.repeat(1, 1, -(-self.width // u.shape[-1]))
        return u[..., : self.width]

    def _shift_projections(
        self, projected: dict[str, Tensor], layout: SequenceLayout, slot: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """u_t + mu (u_{t-1} - u_t) on those of r, k, v in ``token_shift_on``; u_{-1} = 0."""
        letters = self.config.token_shift_on
        last = None if slot is None else slot.get("shift")
        carries = dict.fromkeys(letters) if last is None else _by_letter(letters, last, self.width)
        if slot is not None:
            ends = [layout.last(projected[letter], carries[letter]) for letter in letters]
            slot.put("shift", torch.cat(ends, dim=-1))
        for letter in letters:
            u = projected[letter]
            projected[letter] = layout.shift(u, self.weight_of(f"shift_{letter}"), carries[letter])
        return projected["r"], projected["k"], projected["v"]

    def _recurrence(
        self, operands: tuple[Tensor, ...], x: Tensor, layout: SequenceLayout, slot: Any
    ) -> Tensor:
        """The WKV-7 operator on (r, log w, k, v, a, b) with this layer's cached state."""
        state = None if slot is None else slot.get("wkv")
        snapshots = self._snapshots(x, slot) if self.config.snapshots else None
        y, state, *ring = wkv7(
            *operands, initial_state=state, cu_seqlens=layout.cu_seqlens, snapshots=snapshots
        )
        if slot is not None:
            slot.put("wkv", state)
            if snapshots is not None:
                seen, before = layout.lengths(x.device), slot.get("position")
                slot.put("ring", ring[0])
                slot.put("position", seen if before is None else before + seen)
        return y

    def _snapshots(self, x: Tensor, slot: Any) -> Snapshots:
        """Which earlier states to read beside the present one, and how much of each (our
        reading of the paper's multi-token state processing)."""
        gamma = self.snapshot_proj(x).float().unflatten(-1, (self.heads, -1)).softmax(-1)
        ring = None if slot is None else slot.get("ring")
        position = None if slot is None else slot.get("position")
        return Snapshots(self.config.snapshot_every, gamma, ring, position)


def _by_letter(letters: str, last: Tensor, width: int) -> dict[str, Any]:
    return dict(zip(letters, last.split(width, dim=-1), strict=True))
