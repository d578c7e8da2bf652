"""State-driven heads: RWKV-7's recurrence, fed by attention's projections or by its own.

Legend: B batch, T tokens, D model width, S state heads, N head size. Equations: RWKV-7
(``rwkv_v7_numpy.py`` of RWKV-LM); tensor names and shapes are RWKV-LM's where it has them.

``token_shift="post"`` shifts r, k and v after projection (no extra matmul); ``"pre"`` is RWKV-7's
own form with six shifts of the input. With ``"pre"``, own keys and values, rates up to 1, RWKV-7's
own output gate and the value residual the layer is RWKV-7's time mix exactly.

``state_reads=2`` reads twice, y_t = S_t (W S_t r_t) with W ``[N, N]`` per head (our reading of
arXiv 2504.19191, whose state-driven key is restated as W S X). The recurrence runs twice over the
same state.

The output gate is RWKV-7's sigma(x g1) g2 with ``state_gate_sigmoid="hidden"``, and with
``"output"`` sigma(x g1 g2 + g0), as Kimi Delta Attention has it (arXiv 2510.26692).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wuneng.default_wiring import KINDS_OWN
from wuneng.kinds import register
from wuneng.layers.attention import AttentionHeads
from wuneng.layers.layout import SequenceLayout
from wuneng.layers.norms import HeadGroupNorm
from wuneng.layers.plain_modules import is_matrix, is_plain
from wuneng.layers.state._rwkv7_initial_values import initialise
from wuneng.layers.state._rwkv7_parameters import HeadParameters
from wuneng.layers.state.base import OPTIONAL
from wuneng.layers.token_path import one_token
from wuneng.ops import HeadInputs, HeadOptions, HeadWeights, head_projections, low_rank, state_head


@register("state", "rwkv7")
class RWKV7(HeadParameters):
    """RWKV-7's heads: a generalised delta rule with a decay and a rate for every channel."""

    matrices = frozenset({"read_weight", *(letter + part for letter in "wavg" for part in "12")})
    groups: ClassVar = {"w0": "double_lr", "read_weight": "decay"}
    fields = frozenset(OPTIONAL)
    context_parallel = in_one_call = True
    computed_past_call = (
        *(*HeadParameters.computed_past_call, "_run", "_carry", "_weights_and_read", "_low_rank"),
        *("_gate", "_mixtures", "_receptance_and_logits"),
    )
    token_shifts = ("post", "pre", "none")
    initial_values = ("even", "published")
    gated = KINDS_OWN["rwkv7"]["state_output_gate"]
    gate_sigmoids = (KINDS_OWN["rwkv7"]["state_gate_sigmoid"], "hidden")

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        size, width = config.hidden_size, self.width
        if config.state_removal_key == "own":
            self.kappa_proj = nn.Linear(size, width, bias=False)
        self._add_token_shift(size)
        self._add_low_rank(size, width)
        self.k_k = nn.Parameter(torch.empty(width))
        self.k_a = nn.Parameter(torch.empty(width))
        if config.state_bonus:
            self.r_k = nn.Parameter(torch.empty(self.heads, self.head_dim))
        if config.state_reads == 2:
            self.read_weight = nn.Parameter(torch.empty(self.heads, self.head_dim, self.head_dim))
        if config.state_norm == "group":
            self.g_norm = HeadGroupNorm(self.heads, self.head_dim, config.state_norm_eps)
        self.add_snapshots()
        self.note_names()
        # The plain case, decided once: looking fields of a config up costs at every decoded token.
        self._reads_input = config.token_shift != "pre"
        self._value_residual, self._gated = config.state_value_residual, config.state_output_gate
        self._own_removal_key = config.state_removal_key == "own"
        self._reads_twice = config.state_reads == 2
        #: Whether a decoded token may go through all layers at once (wuneng.layers.block_token).
        self.is_known = (
            self.value_source != "attention_output"
            and not (self._own_removal_key or self._reads_twice)
            and not (self._value_residual and config.token_shift == "post")
            and not config.snapshots
        )
        #: Whether it may take the short way through a block (wuneng.layers.token_path).
        self.is_usual = (
            self.is_known
            and self._reads_input
            and not (self._value_residual or self._gated or config.state_short_conv)
        )
        self.options = HeadOptions(
            self.heads,
            self.head_dim,
            a_max=config.state_a_max,
            norm_eps=config.state_norm_eps,
            letters=config.token_shift_on if self._shifts_in_operator() else "",
        )
        #: Channels of the token before that heads which are known keep for the next call.
        self.carried = len(self.options.letters) * width if self._reads_input else size

    def initialise(self, config: Any) -> None:
        """Those of :mod:`wuneng.layers.state._rwkv7_initial_values`, as ``state_init`` says."""
        initialise(self, config)
        super().initialise(config)

    def one_token(
        self,
        cross_head: nn.Module,
        hidden: Tensor,
        attention: AttentionHeads | None,
        layout: SequenceLayout,
        slot: Any,
    ) -> tuple[Tensor, Tensor] | None:
        """One call in C for heads of the usual wiring (:mod:`wuneng.layers.token_path`)."""
        return one_token(self, cross_head, hidden, attention, layout, slot)

    def _shifts_in_operator(self) -> bool:
        """Not where values are mixed after their shift, or the read vector is not shifted again."""
        config = self.config
        again = config.state_value_residual or config.state_reads == 2
        return config.token_shift == "post" and not again

    @classmethod
    def recurrence_flops(cls, config: Any) -> float:
        """As :class:`StateHeads`; another read is of the state and of every snapshot."""
        again = 2 * (1 + config.snapshots) * config.num_state_heads * config.state_head_dim**2
        return super().recurrence_flops(config) + (config.state_reads - 1) * again

    def forward(
        self,
        hidden: Tensor,
        attention: AttentionHeads | None,
        first_value: Tensor | None,
        layout: SequenceLayout,
        slot: Any = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Run the heads; arguments and results as :class:`StateHeads`."""
        x = layout.pack(hidden)
        mixtures = self._mixtures(x, layout, slot)
        k, v = self.key_value(mixtures, attention, layout)
        r, decay, rate = self._receptance_and_logits(mixtures)
        r, k, v = self.convolved(r, k, v, layout, slot)
        if self._value_residual or self._reads_twice:
            r, k, v = self.shifted(r, k, v, layout, slot)
        if self._value_residual:
            if first_value is None:
                first_value = v
            else:
                mix = torch.sigmoid(self._low_rank("v", mixtures["v"]))
                v = torch.lerp(v, first_value, mix.to(v.dtype))
        source = self.kappa_proj(x) if self._own_removal_key else None
        gate = self._gate(mixtures["g"]) if self._gated else None
        inputs = HeadInputs(r, decay, k, v, rate, source, gate)
        R = self._run(inputs, x, layout, slot)
        return layout.unpack(R if R.dtype == hidden.dtype else R.to(hidden.dtype)), first_value

    def _run(self, inputs: HeadInputs, x: Tensor, layout: SequenceLayout, slot: Any) -> Tensor:
        """The recurrence from this layer's cached state to the next, R ``[.., S, N]``."""
        state = None if slot is None else slot.get("wkv")
        snapshots = self.snapshots(x, slot)
        shifts_here = bool(self.options.letters)
        weights, read = self._weights_and_read()
        if self._reads_twice:
            inputs = inputs._replace(r=self._second_read_vector(inputs, state, layout, snapshots))
        R, state, carry, ring = state_head(
            inputs,
            weights,
            self.options,
            state=state,
            carry=self._carry(inputs, layout, slot) if shifts_here else None,
            cu_seqlens=layout.cu_seqlens,
            keeps_carry=shifts_here and slot is not None,
            snapshots=snapshots,
            read=read,
            recurrence=layout.runs(self.recurrence),
        )
        if slot is not None:
            slot.put("wkv", state)
            if shifts_here:
                slot.put("shift", carry)
            if snapshots is not None:
                self.keep_ring(ring, layout, slot, x.device)
        return R

    def _carry(self, inputs: HeadInputs, layout: SequenceLayout, slot: Any) -> Tensor | None:
        """Each sequence's last token of an earlier call or rank, as the operator shifts them."""
        if slot is not None:
            kept: Tensor | None = slot.get("shift")
            return kept
        letters = (getattr(inputs, letter)[..., : self.width] for letter in self.options.letters)
        return layout.before(*letters)

    def _second_read_vector(
        self, inputs: HeadInputs, state: Tensor | None, layout: SequenceLayout, snapshots: Any
    ) -> Tensor:
        """W S_t r_t ``[.., S * N]``: what a read without norm, bonus and gate finds, times W."""
        once = state_head(
            inputs._replace(gate=None),
            self._weights()._replace(bonus=None),
            self.options,
            state=state,
            cu_seqlens=layout.cu_seqlens,
            snapshots=snapshots,
            recurrence=layout.runs(self.recurrence),
        )
        weight = self.weight_of("read_weight").to(once.readout.dtype)
        return torch.einsum("btsi,sij->btsj", once.readout, weight).flatten(-2)

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
            self.recurrence is None
            and is_plain(self, RWKV7)
            and is_plain(self.readout, nn.Identity)
            and is_matrix(self.r_proj)
            and (norm is None or is_plain(norm, HeadGroupNorm))
            and self.has_plain_convolutions
            and len(self._parameters) == len(self._names)
        )

    def token_weights(self) -> tuple[Any, ...]:
        """Receptance, decay, rate and the rest, as a decoded token's call takes them.

        For heads that :meth:`can_be_read`.
        """
        decay, rate = self._low_rank_weights("w"), self._low_rank_weights("a")
        return self.r_proj.weight, decay, rate, self._with_norm(self._weights())

    def wide_weights(self) -> tuple[Any, ...]:
        """What RWKV-7's own form has besides :meth:`token_weights`: how much of the token before r,
        w, k, v, a, g read, the output gate, and the value residual; None if absent.
        """
        mixtures = tuple(self.weight_of(f"x_{letter}") for letter in "rwkvag")
        gate = self._low_rank_weights("g") if self._gated else None
        has_residual = self._value_residual and "v0" in self._names
        return mixtures, gate, self._low_rank_weights("v") if has_residual else None

    def _low_rank(self, letter: str, x: Tensor, tanh: bool = False) -> Tensor:
        """bias + (x down) up, with tanh between the two if so."""
        return low_rank(x, self._low_rank_weights(letter), tanh=tanh, size=self.head_dim)

    def _gate(self, x: Tensor) -> Tensor:
        """What multiplies the output, ``[B, T, S * N]`` in x's dtype."""
        if "g0" in self._names:
            return torch.sigmoid(self._low_rank("g", x)).to(x.dtype)
        return torch.sigmoid(x @ self.weight_of("g1")) @ self.weight_of("g2")

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
        } | ({"v": x} if self.value_source != "own" else {})

    def _receptance_and_logits(self, mixtures: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """r and the logits of decay and rate ``[.., S * N]``."""
        project = self.r_proj
        if self._reads_input and is_matrix(project):
            decay, rate = self._low_rank_weights("w"), self._low_rank_weights("a")
            x = mixtures["r"]
            return head_projections(x, project.weight, decay, rate, size=self.head_dim)
        logit = self._low_rank("w", mixtures["w"], tanh=True)
        return project(mixtures["r"]), logit, self._low_rank("a", mixtures["a"])
