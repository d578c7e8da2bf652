"""What a kind of state heads brings: the contract, and what most kinds need to fulfil it.

A kind is a class in a file of its own, :func:`wuneng.kinds.register`-ed under the file's name:

    read                R ``[.., S, N]`` of a layer's packed input, over a SequenceLayout
    initialise          the initial values of its parameters
    check               what it cannot be configured to
    matrices, groups    which parameters multiply tokens, and how they are optimised
    recurrence_flops    what the state itself costs per token
    state_elements      what the cache holds per sequence
    one_token           a decoded token's short way, where there is one

The rest of the model knows nothing else about it. Heads are grafted silently whatever they compute,
because the branch's projection after them starts at zero.

Legend: B batch, T tokens, D model width, S state heads, N head size. "Packed": the tokens of each
sequence in a row without pads (:class:`wuneng.layers.layout.SequenceLayout`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from wuneng.layers.attention import AttentionHeads
from wuneng.layers.layout import SequenceLayout
from wuneng.layers.state._tokens_before import LETTERS, TokensBefore
from wuneng.layers.token_shift import SHIFT_POWER, shift_ramp
from wuneng.ops import Recurrence, Snapshots, wkv7

#: Fields that not every kind has, and their value where it is without.
OPTIONAL: dict[str, Any] = {
    "state_removal_key": "shared",
    "state_value_residual": False,
    "state_output_gate": False,
    "state_a_max": 1.0,
    "state_reads": 1,
    "state_bonus": True,
    "state_norm_eps": 64e-5,
}
NOW_LOGIT = 5.0  # softmax over (now, snapshots) starts with more than 0.96 on the present state


class StateHeads(TokensBefore):
    """The state heads of one layer, whichever kind; ``forward`` returns R ``[B, T, S, N]``.

    ``readout`` is an identity that the raw state read y passes through, so that evaluation controls
    can silence or permute what the state says without touching anything else. ``recurrence`` is
    what they set to change what becomes of the state itself.
    """

    #: Parameters, by the last part of their name, that every token is multiplied with: they count
    #: two operations per weight, as the weights of linear layers do by themselves.
    matrices: ClassVar[frozenset[str]] = frozenset()
    #: Optimiser treatment by the last part of a name, where the rule for all models is not right.
    groups: ClassVar[Mapping[str, str]] = {}
    #: Which of attention's projections it can take for its own: of "key", "value".
    shares: ClassVar[frozenset[str]] = frozenset({"key", "value"})
    #: Settings of its own, in ``state_options``, and their defaults.
    settings: ClassVar[Mapping[str, Any]] = {}
    #: ``state_output_gate`` where nobody says.
    gated: ClassVar[bool] = False
    #: Which of :data:`OPTIONAL` it has.
    fields: ClassVar[frozenset[str]] = frozenset()
    #: Fields as the kind is published, where they are not as WuNeng's own heads have them.
    published: ClassVar[Mapping[str, Any]] = {}
    #: What ``state_init`` may be; the first where nobody says.
    initial_values: ClassVar[tuple[str, ...]] = ("published",)
    #: What ``state_gate_sigmoid`` may be; the first where nobody says.
    gate_sigmoids: ClassVar[tuple[str, ...]] = ()
    #: Whether it may see a piece of a sequence (:mod:`wuneng.ops.context`): it meets other tokens
    #: through its layout and :meth:`recur` alone. Not inherited: a class says so itself.
    context_parallel: ClassVar[bool] = False
    #: Whether a decoded token's one call computes it (:mod:`wuneng.layers.block_token`). Not
    #: inherited either.
    in_one_call: ClassVar[bool] = False
    #: Methods that :func:`wuneng.layers.plain_modules.is_plain` asks for beside ``forward``.
    computed_past_call: ClassVar[tuple[str, ...]] = (
        *("key_value", "_pick", "shifted", "convolved", "recur"),
    )
    #: Ways that ``token_shift`` can be.
    token_shifts: ClassVar[tuple[str, ...]] = ("post", "none")

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.heads, self.head_dim = config.num_state_heads, config.state_head_dim
        self.width = self.heads * self.head_dim
        self.key_source = config.state_source("key", layer_idx)
        self.value_source = config.state_source("value", layer_idx)
        self.r_proj = nn.Linear(config.hidden_size, self.width, bias=False)
        if self.key_source == "own":
            self.k_proj = nn.Linear(config.hidden_size, self.width, bias=False)
        if self.value_source == "own":
            self.v_proj = nn.Linear(config.hidden_size, self.width, bias=False)
        elif self.value_source == "attention_output":
            attended = config.num_attention_heads * config.head_dim
            self.v_proj = nn.Linear(attended, self.width, bias=False)
        self.add_convolutions()
        self.readout = nn.Identity()
        #: Runs in place of :func:`wuneng.ops.wkv7`, called as it is; None is itself.
        self.recurrence: Recurrence | None = None

    def add_snapshots(self) -> None:
        """Register what weighs the snapshots, if there are any; a kind calls it after its own."""
        if self.config.snapshots:
            count = self.heads * (1 + self.config.snapshots)
            self.snapshot_proj = nn.Linear(self.config.hidden_size, count)

    @classmethod
    def check(cls, config: Any) -> None:
        """Raise ValueError, naming the field, for a configuration that this kind cannot be."""
        unknown = set(config.state_options or {}) - set(cls.settings)
        if unknown:
            raise ValueError(
                f"state_options: {config.state_kind} has no setting {min(map(str, unknown))!r}; "
                f"it takes {', '.join(cls.settings) or 'none'}"
            )
        for name, without in OPTIONAL.items():
            if getattr(config, name) != without and name not in cls.fields:
                raise ValueError(
                    f"{name} must be {without!r} where state_kind is {config.state_kind}, "
                    f"got {getattr(config, name)!r}"
                )
        known: dict[str, tuple[str | None, ...]] = {
            "token_shift": cls.token_shifts,
            "state_init": cls.initial_values,
            "state_gate_sigmoid": cls.gate_sigmoids or (None,),
        }
        for name, ways in known.items():
            if getattr(config, name) not in ways:
                raise ValueError(
                    f"{name} must be {' or '.join(map(str, ways))} where state_kind is "
                    f"{config.state_kind}, got {getattr(config, name)!r}"
                )
        for which in ("key", "value"):
            source = getattr(config, f"state_{which}_source")
            if source != "own" and which not in cls.shares:
                raise ValueError(
                    f"state_{which}_source must be 'own' where state_kind is {config.state_kind}, "
                    f"got {source!r}"
                )

    def delta_weights(self) -> Any:
        """What a decoded token's one call reads of the delta rule's heads; None of others."""
        return None

    @classmethod
    def recurrence_flops(cls, config: Any) -> float:
        """Operations per token of a layer's recurrence. Here: of a state ``[N, N]`` per head that
        decays, is corrected by a rank-one step, written to and read (8 N^2), and 2 N^2 a snapshot.
        """
        per_head = (8 + 2 * config.snapshots) * config.state_head_dim**2
        return float(config.num_state_heads * per_head)

    @classmethod
    def state_elements(cls, config: Any) -> int:
        """Float32 numbers that a layer's cache holds per sequence for the state itself."""
        return int(config.num_state_heads * config.state_head_dim**2)

    def setting(self, name: str) -> Any:
        """One of the kind's own ``settings``."""
        return (self.config.state_options or {}).get(name, self.settings[name])

    def initialise(self, config: Any) -> None:
        """Give the parameters their initial values; a kind adds its own to these."""
        power = 1 - self.layer_idx / config.num_hidden_layers
        for letter in LETTERS:
            shift = getattr(self, f"shift_{letter}", None)
            if shift is not None:
                init.copy_(shift, shift_ramp(shift.numel(), SHIFT_POWER[letter] * power))
        if config.snapshots:
            init.zeros_(self.snapshot_proj.weight)
            bias = torch.zeros(self.heads, 1 + config.snapshots)
            bias[:, 0] = NOW_LOGIT
            init.copy_(self.snapshot_proj.bias, bias.flatten())

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
            first_value: layer 0's values for RWKV-7's value residual (packed), to be handed on.
            layout: which tokens form which sequence.
            slot: this layer's cache, or None.

        Returns:
            R ``[B, T, S, N]`` in hidden's dtype, and ``first_value``.
        """
        R = self.read(layout.pack(hidden), attention, layout, slot)
        return layout.unpack(R.to(hidden.dtype)), first_value

    def read(
        self, x: Tensor, attention: AttentionHeads | None, layout: SequenceLayout, slot: Any
    ) -> Tensor:
        """What the heads read: R ``[.., S, N]`` of the packed input ``x`` ``[.., D]``.

        Other arguments as of :meth:`forward`, which a kind overrides only to use ``first_value``.
        """
        raise NotImplementedError

    def one_token(
        self,
        cross_head: nn.Module,
        hidden: Tensor,
        attention: AttentionHeads | None,
        layout: SequenceLayout,
        slot: Any,
    ) -> tuple[Tensor, Tensor] | None:
        """A decoded token through these heads and the middle heads at once, if there is a way.

        Returns:
            A' ``[B, 1, H * N]`` and the branch ``[B, 1, D]``; None where the modules have to run.
        """
        return None

    def key_value(
        self, inputs: Mapping[str, Tensor], attention: AttentionHeads | None, layout: Any
    ) -> tuple[Tensor, Tensor]:
        """k, v from their sources, packed; attention's may hold more heads than S. ``inputs``: what
        own projections ``k`` and ``v`` read, where there are some."""
        if self.key_source == "own":
            k = self.k_proj(inputs["k"])
        else:
            assert attention is not None
            k = self._pick(layout.pack(attention.key))
        if self.value_source == "own":
            return k, self.v_proj(inputs["v"])
        assert attention is not None
        if self.value_source == "attention":
            return k, self._pick(layout.pack(attention.value))
        return k, self.v_proj(layout.pack(attention.output))

    def _pick(self, u: Tensor) -> Tensor:
        """Attention's G heads of keys or values for S state heads: the first S, or around again."""
        return u if u.shape[-1] >= self.width else u.repeat(1, 1, -(-self.width // u.shape[-1]))

    def snapshots(self, x: Tensor, slot: Any) -> Snapshots | None:
        """Which earlier states to read beside the present one, and how much of each (our reading of
        the paper's multi-token state processing); None without them. ``x``: packed input."""
        if "snapshot_proj" not in self._modules:
            return None
        logits = self.snapshot_proj(x)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        gamma = wide.unflatten(-1, (self.heads, -1)).softmax(-1)
        ring = None if slot is None else slot.get("ring")
        position = None if slot is None else slot.get("position")
        return Snapshots(self.config.snapshot_every, gamma, ring, position)

    def keep_ring(self, ring: Any, layout: SequenceLayout, slot: Any, device: torch.device) -> None:
        """Put the snapshots' ring into the cache, and count the tokens it has seen."""
        seen, before = layout.lengths(device), slot.get("position")
        slot.put("ring", ring)
        slot.put("position", seen if before is None else before + seen)

    def recur(
        self,
        inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor],
        x: Tensor,
        layout: SequenceLayout,
        slot: Any,
    ) -> Tensor:
        """y ``[.., S, N]`` of :func:`wuneng.ops.wkv7` over r, w, k, v, a, b ``[.., S, N]``.

        From this layer's cached state to the next; y has passed ``readout``. ``x``: packed input.
        """
        snapshots = self.snapshots(x, slot)
        state = None if slot is None else slot.get("wkv")
        options: dict[str, Any] = {"initial_state": state, "cu_seqlens": layout.cu_seqlens}
        run = layout.runs(self.recurrence) or wkv7
        if snapshots is None:
            y, state = run(*inputs, **options)
        else:
            y, state, ring = run(*inputs, **options, snapshots=snapshots)
            if slot is not None:
                self.keep_ring(ring, layout, slot, x.device)
        if slot is not None:
            slot.put("wkv", state)
        read: Tensor = self.readout(y)
        return read
