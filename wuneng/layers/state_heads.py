"""State-driven heads: RWKV-7's recurrence, fed by attention's projections or by its own.

Legend: B batch, T tokens, D model width, S state heads, N head size. Equations: RWKV-7
(``rwkv_v7_numpy.py`` of RWKV-LM); tensor names and shapes are RWKV-LM's where it has them.

``token_shift="post"`` shifts r, k and v after projection (no extra matmul); ``"pre"`` is RWKV-7's
own form with six shifts of the input. With ``"pre"``, own keys and values, an output gate and the
value residual the layer is RWKV-7's time mix exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from wuneng.layers.attention import AttentionHeads
from wuneng.layers.layout import SequenceLayout
from wuneng.layers.norms import HeadGroupNorm
from wuneng.layers.plain_modules import is_plain
from wuneng.layers.state_parameters import HeadParameters
from wuneng.ops import (
    HeadInputs,
    HeadOptions,
    HeadWeights,
    Snapshots,
    head_projections,
    low_rank,
    state_head,
)


class StateHeads(HeadParameters):
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
        self.note_names()
        # The plain case, decided once: looking fields of a config up costs at every decoded token.
        self._reads_input = config.token_shift != "pre"
        self._takes_attention = (
            config.state_key_source == "attention" and config.state_value_source == "attention"
        )
        self._value_residual, self._gated = config.state_value_residual, config.state_output_gate
        self._own_removal_key = config.state_removal_key == "own"
        #: Whether a decoded token may take the short way (wuneng.layers.token_path).
        self.is_usual = (
            self._reads_input
            and self._takes_attention
            and not (self._value_residual or self._gated or self._own_removal_key)
            and not config.snapshots
            and config.cross_head != "none"
            and config.num_key_value_heads >= self.heads
        )
        self.options = HeadOptions(
            self.heads,
            self.head_dim,
            a_max=config.state_a_max,
            norm_eps=config.state_norm_eps,
            letters=config.token_shift_on if self._shifts_in_operator() else "",
        )

    def _shifts_in_operator(self) -> bool:
        return self.config.token_shift == "post" and not self.config.state_value_residual

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
        mixtures = self._mixtures(x, layout, slot)
        k, v = self._key_value(mixtures, attention, layout)
        r, decay, rate = self._receptance_and_logits(mixtures)
        if self._value_residual:
            # The residual mixes shifted values, so these shifts cannot wait for the operator.
            r, k, v = self._shifted_now(r, k, v, layout, slot)
            if first_value is None:
                first_value = v
            else:
                mix = torch.sigmoid(self._low_rank("v", mixtures["v"]))
                v = torch.lerp(v, first_value, mix.to(v.dtype))
        source = self.kappa_proj(x) if self._own_removal_key else None
        gate = None
        if self._gated:
            gate = torch.sigmoid(mixtures["g"] @ self.weight_of("g1")) @ self.weight_of("g2")
        inputs = HeadInputs(r, decay, k, v, rate, source, gate)
        R = self._run(inputs, x, layout, slot)
        return layout.unpack(R if R.dtype == hidden.dtype else R.to(hidden.dtype)), first_value

    def _run(self, inputs: HeadInputs, x: Tensor, layout: SequenceLayout, slot: Any) -> Tensor:
        """The recurrence from this layer's cached state to the next, R ``[.., S, N]``."""
        state = None if slot is None else slot.get("wkv")
        snapshots = self._snapshots(x, slot) if "snapshot_proj" in self._modules else None
        shifts_here = bool(self.options.letters)
        weights, read = self._weights_and_read()
        R, state, carry, ring = state_head(
            inputs,
            weights,
            self.options,
            state=state,
            carry=slot.get("shift") if shifts_here and slot is not None else None,
            cu_seqlens=layout.cu_seqlens,
            keeps_carry=shifts_here and slot is not None,
            snapshots=snapshots,
            read=read,
        )
        if slot is not None:
            slot.put("wkv", state)
            if shifts_here:
                slot.put("shift", carry)
            if snapshots is not None:
                seen, before = layout.lengths(x.device), slot.get("position")
                slot.put("ring", ring)
                slot.put("position", seen if before is None else before + seen)
        return R

    def _weights_and_read(self) -> tuple[HeadWeights, Callable[[Tensor], Tensor] | None]:
        """All weights, and what is to be called on the raw read before the operator goes on.

        The group norm is the operator's as long as it is nothing but its weights.
        """
        weights, norm, readout = self._weights(), self._modules.get("g_norm"), self.readout
        silent = is_plain(readout, nn.Identity)
        if norm is not None and not is_plain(norm, HeadGroupNorm):
            return weights, norm if silent else lambda y: norm(readout(y))
        return self._with_norm(weights), None if silent else readout

    def can_be_read(self) -> bool:
        """Whether these heads are nothing but their weights: nobody watches or replaced a part."""
        norm = self._modules.get("g_norm")
        return (
            is_plain(self, StateHeads)
            and is_plain(self.readout, nn.Identity)
            and is_plain(self.r_proj, nn.Linear)
            and (norm is None or is_plain(norm, HeadGroupNorm))
        )

    def token_weights(self) -> tuple[Any, ...]:
        """Receptance, decay, rate and the rest, as a decoded token's call takes them.

        For heads that :meth:`can_be_read`.
        """
        decay, rate = self._low_rank_weights("w"), self._low_rank_weights("a")
        return self.r_proj.weight, decay, rate, self._with_norm(self._weights())

    def _low_rank(self, letter: str, x: Tensor, tanh: bool = False) -> Tensor:
        """bias + (x down) up, with tanh between the two if so."""
        return low_rank(x, self._low_rank_weights(letter), tanh=tanh, size=self.head_dim)

    def _mixtures(self, x: Tensor, layout: SequenceLayout, slot: Any) -> dict[str, Tensor]:
        """What each projection reads: the input itself, or RWKV-7's six shifted mixtures of it."""
        if self._reads_input:
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

    def _receptance_and_logits(self, mixtures: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """r and the logits of decay and rate ``[.., S * N]``."""
        project = self.r_proj
        if self._reads_input and is_plain(project, nn.Linear):
            decay, rate = self._low_rank_weights("w"), self._low_rank_weights("a")
            x = mixtures["r"]
            return head_projections(x, project.weight, decay, rate, size=self.head_dim)
        logit = self._low_rank("w", mixtures["w"], tanh=True)
        return project(mixtures["r"]), logit, self._low_rank("a", mixtures["a"])

    def _key_value(
        self, mixtures: dict[str, Tensor], attention: AttentionHeads | None, layout: SequenceLayout
    ) -> tuple[Tensor, Tensor]:
        """k, v from their sources; attention's may hold more heads than S."""
        if self._takes_attention:
            assert attention is not None
            return self._pick(layout.pack(attention.key)), self._pick(layout.pack(attention.value))
        config = self.config
        if config.state_key_source == "own":
            k = self.k_proj(mixtures["k"])
        else:
            assert attention is not None
            k = self._pick(layout.pack(attention.key))
        if config.state_value_source == "own":
            v = self.v_proj(mixtures["v"])
        elif config.state_value_source == "attention":
            assert attention is not None
            v = self._pick(layout.pack(attention.value))
        else:
            assert attention is not None
            v = self.v_proj(layout.pack(attention.output))
        return k, v

    def _pick(self, u: Tensor) -> Tensor:
        """Attention's G heads of keys or values for S state heads: the first S, or around again."""
        return u if u.shape[-1] >= self.width else u.repeat(1, 1, -(-self.width // u.shape[-1]))

    def _shifted_now(
        self, r: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, slot: Any
    ) -> tuple[Tensor, ...]:
        """r, k, v after a token shift that follows projection; the cache keeps the last token."""
        projected = {"r": r, "k": k[..., : self.width], "v": v[..., : self.width]}
        letters = self.config.token_shift_on if self.config.token_shift == "post" else ""
        last = None if slot is None or not letters else slot.get("shift")
        carries: dict[str, Any] = dict.fromkeys(letters)
        if last is not None:
            carries = dict(zip(letters, last.split(self.width, dim=-1), strict=True))
        if slot is not None and letters:
            ends = [layout.last(projected[letter], carries[letter]) for letter in letters]
            slot.put("shift", torch.cat(ends, dim=-1))
        for letter in letters:
            mu = self.weight_of(f"shift_{letter}")
            projected[letter] = layout.shift(projected[letter], mu, carries[letter])
        return tuple(projected.values())

    def _snapshots(self, x: Tensor, slot: Any) -> Snapshots:
        """Which earlier states to read beside the present one, and how much of each (our
        reading of the paper's multi-token state processing)."""
        logits = self.snapshot_proj(x)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        gamma = wide.unflatten(-1, (self.heads, -1)).softmax(-1)
        ring = None if slot is None else slot.get("ring")
        position = None if slot is None else slot.get("position")
        return Snapshots(self.config.snapshot_every, gamma, ring, position)
