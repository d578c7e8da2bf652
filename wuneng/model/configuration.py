"""Configuration of WuNeng: attention as a Llama has it, plus state heads and middle heads.

Names follow transformers where transformers has one (``num_attention_heads`` is H,
``num_key_value_heads`` G, ``head_dim`` N); S is ``num_state_heads``. With ``num_state_heads=0`` the
model is a Llama; with ``num_attention_heads=0`` a pure state model. ``layers`` says for each layer
which heads it has: ``hybrid`` both, ``attention`` or ``state`` one kind alone.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from wuneng.default_wiring import LARGEST_RATE, first_outputs, shifts_attention
from wuneng.errors import nearest
from wuneng.kinds import check_kind, load_kind
from wuneng.layer_pattern import expand_layers, layer_problem, shape_problem
from wuneng.limits import LIMITS
from wuneng.model.field_defaults import (
    default_initializer_range,
    default_intermediate_size,
    default_rank,
    with_older_meaning,
)
from wuneng.model.field_rules import check_experts, check_heads, check_rope
from wuneng.model.field_types import CHOICES, choice_problem, type_problem

_GELUS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu")
#: What recipes offer. A converted model keeps whatever activation transformers knows.
USUAL_ACTIVATIONS = ("silu", *_GELUS, "relu", "relu2", "mish")


def _has_rates(kind: str) -> bool:
    """Whether this kind of state heads has a choice of ``state_a_max``."""
    return check_kind("state", kind) is None and "state_a_max" in load_kind("state", kind).fields


class WuNengConfig(PreTrainedConfig):
    """Configuration of a :class:`WuNengForCausalLM`.

    Raises:
        ValueError: a field has a value outside its choices, or two fields contradict each other.
    """

    model_type = "wuneng"
    keys_to_ignore_at_inference: ClassVar = ["past_key_values", "cache"]

    vocab_size: int = 32000
    hidden_size: int = 256
    intermediate_size: int | None = None
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float | None = None
    output_init: str | None = None
    rms_norm_eps: float = 1e-5
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = True
    rope_parameters: dict | None = None
    attention_bias: bool = False
    attention_output_bias: bool = False
    attention_dropout: float = 0.0
    qk_norm: bool = False
    sliding_window: int | None = None
    sliding_window_layers: list[int] | None = None
    attention_token_shift: bool | None = None
    attention_short_conv: int = 0
    attention_output_gate: bool = False
    mlp_bias: bool = False
    ffn: str = "swiglu"
    norm: str = "rmsnorm"
    embedding_norm: bool = False
    norm_placement: str = "pre"
    qk_norm_over: str = "head"
    scaled_embedding: bool = False
    embedding_multiplier: float = 1.0
    attention_multiplier: float | None = None
    attention_softcap: float | None = None
    residual_multiplier: float = 1.0
    logits_scaling: float = 1.0
    logit_softcap: float | None = None
    rope_layers: list[int] | None = None
    sliding_rope_parameters: dict | None = None
    rope_float32: bool = False
    longrope_recompute: bool = False
    num_experts: int = 0
    num_experts_per_tok: int = 1
    moe_intermediate_size: int | None = None
    norm_topk_prob: bool = False
    moe_layers: list[int] | None = None

    layers: list[str] | dict | None = None
    num_state_heads: int = 2
    state_kind: str = "rwkv7"
    state_options: dict | None = None
    state_head_dim: int | None = None
    state_layers: list[int] | None = None
    state_key_source: str = "own"
    state_value_source: str = "attention"
    state_removal_key: str = "shared"
    token_shift: str = "post"
    token_shift_on: str = "rkv"
    state_short_conv: int = 0
    state_a_max: float | None = None
    state_reads: int = 1
    decay_rank: int | None = None
    rate_rank: int | None = None
    value_rank: int | None = None
    gate_rank: int | None = None
    state_output_gate: bool | None = None
    state_gate_sigmoid: str | None = None
    state_value_residual: bool = False
    state_bonus: bool = True
    state_norm: str = "group"
    state_norm_eps: float = 64e-5
    state_output_scale: str = "head"
    state_init: str | None = None
    state_branch_init: str | None = None
    cross_head: str = "none"
    snapshots: int = 0
    snapshot_every: int = 64

    def __post_init__(self, **kwargs: Any) -> None:
        self._check_types()
        self._check_limits()
        self._fill_defaults()
        super().__post_init__(**kwargs)
        self.check()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers', for files of earlier versions too (:mod:`wuneng.older_files`)."""
        return super().from_dict(with_older_meaning(config_dict), **kwargs)

    def _fill_defaults(self) -> None:
        if self.initializer_range is None:
            self.initializer_range = default_initializer_range(self.hidden_size)
        if self.output_init is None:
            self.output_init = first_outputs(self.num_state_heads)
        if self.head_dim is None:
            self.head_dim = self._default_head_dim()
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.intermediate_size is None:
            self.intermediate_size = default_intermediate_size(self.hidden_size, self.ffn)
        if self.state_head_dim is None:
            self.state_head_dim = self.head_dim
        if self.attention_token_shift is None:
            self.attention_token_shift = shifts_attention(
                self.num_attention_heads, self.num_state_heads, self.token_shift
            )
        if check_kind("state", self.state_kind) is None:
            self._fill_from_kind(load_kind("state", self.state_kind))
        self._fill_ranks()
        if not self._has_hybrid():
            self.cross_head = "none"

    def _fill_from_kind(self, kind: Any) -> None:
        if self.state_output_gate is None:
            self.state_output_gate = kind.gated
        if self.state_a_max is None:
            self.state_a_max = LARGEST_RATE if _has_rates(self.state_kind) else 1.0
        if self.state_init is None:
            self.state_init = kind.initial_values[0]
        if self.state_gate_sigmoid is None and kind.gate_sigmoids:
            self.state_gate_sigmoid = kind.gate_sigmoids[0]

    def _has_hybrid(self) -> bool:
        """Whether some layer has both kinds of heads, which middle heads mix."""
        both = bool(self.num_state_heads and self.num_attention_heads)
        if self.layers is None or shape_problem(self.layers):
            return both
        return both and "hybrid" in expand_layers(self.layers, self.num_hidden_layers)

    def changed(self, changes: Mapping[str, Any]) -> WuNengConfig:
        """A copy with some fields changed; None leaves one to its default. Errors of the class."""
        copied = copy.deepcopy(self)
        if changes.get("state_kind", self.state_kind) != self.state_kind:
            for name in ("state_output_gate", "state_gate_sigmoid", "state_init"):
                setattr(copied, name, None)  # another kind's are otherwise
            if not all(map(_has_rates, (self.state_kind, changes["state_kind"]))):
                copied.state_a_max = None
        for name, value in changes.items():
            setattr(copied, name, value)
        copied._check_types()
        copied._check_limits()
        copied._fill_defaults()
        copied.check()
        return copied

    def _check_types(self) -> None:
        """Raise ValueError for a field of another type than it is declared with: a config.json may
        say anything, and whatever reads it later would break down."""
        for name, declared in WuNengConfig.__annotations__.items():
            if wrong := type_problem(getattr(self, name), str(declared)):
                raise ValueError(f"{name} {wrong}")

    def _check_limits(self) -> None:
        """Raise ValueError for a number that is too small or too large."""
        for name, limits in LIMITS.items():
            value = getattr(self, name)
            if value is not None and (problem := limits.problem(value)):
                raise ValueError(f"{name} {problem}")

    def _default_head_dim(self) -> int:
        if self.num_attention_heads:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"num_attention_heads must divide hidden_size ({self.hidden_size}) where "
                    f"head_dim is left out, got {self.num_attention_heads}"
                )
            return self.hidden_size // self.num_attention_heads
        return self.state_head_dim or 64

    def _fill_ranks(self) -> None:
        factors = {"decay_rank": 2.5, "rate_rank": 2.5, "value_rank": 1.7, "gate_rank": 5.0}
        for name, factor in factors.items():
            if getattr(self, name) is None:
                setattr(self, name, default_rank(factor, self.hidden_size))

    def check(self) -> None:
        """Raise ValueError, naming the field, if the configuration contradicts itself."""
        for name in CHOICES:
            if wrong := choice_problem(name, getattr(self, name)):
                raise ValueError(f"{name} {wrong}")
        for room, name in (("state", "state_kind"), ("middle", "cross_head")):
            if wrong := check_kind(room, getattr(self, name)):  # type: ignore[arg-type]
                raise ValueError(f"{name} {wrong}")
        check_heads(self)
        check_experts(self)
        self._check_limits()
        self._check_values()
        self._check_layers()
        if self.num_state_heads:
            load_kind("state", self.state_kind).check(self)

    def _check_layers(self) -> None:
        for name in ("state_layers", "sliding_window_layers", "rope_layers", "moe_layers"):
            layers = getattr(self, name)
            if layers is not None and any(not 0 <= i < self.num_hidden_layers for i in layers):
                raise ValueError(f"{name} must lie in 0..{self.num_hidden_layers - 1}: {layers}")
        wrong = layer_problem(
            self.layers,
            self.num_hidden_layers,
            attention_heads=self.num_attention_heads,
            state_heads=self.num_state_heads,
        )
        if wrong is None and self.layers is not None and self.state_layers is not None:
            wrong = "says the same as state_layers: give one of them"
        if wrong is not None:
            raise ValueError(f"layers {wrong}")
        if self.sliding_window_layers is not None and self.sliding_window is None:
            raise ValueError("sliding_window_layers needs sliding_window")
        if self.layers is not None:
            without = [i for i in self.sliding_window_layers or () if not self.has_attention(i)]
            if without:
                raise ValueError(f"sliding_window_layers: layer {without[0]} has no attention")

    def _check_values(self) -> None:
        """Fields of which not every value within their limits will do."""
        letters = self.token_shift_on
        if set(letters) - set("rkv") or len(set(letters)) < len(letters):
            raise ValueError(f"token_shift_on takes letters of 'rkv', each once, got {letters!r}")
        for name in ("state_short_conv", "attention_short_conv"):
            if getattr(self, name) == 1:
                raise ValueError(f"{name} must be 0 or 2 and more taps, got 1")
        if self.snapshot_every % 16:
            raise ValueError(
                f"snapshot_every must be a positive multiple of 16, got {self.snapshot_every}"
            )
        check_rope(self)
        if self.hidden_act not in USUAL_ACTIVATIONS:
            from transformers.activations import ACT2FN  # torch, which planning does without

            if self.hidden_act not in ACT2FN:
                raise ValueError(
                    f"hidden_act {self.hidden_act!r} is not known."
                    f"{nearest(self.hidden_act, ACT2FN)}"
                )

    def has_state(self, layer_idx: int) -> bool:
        """Whether layer ``layer_idx`` carries state heads."""
        return self.layer_kind(layer_idx) != "attention"

    def has_attention(self, layer_idx: int) -> bool:
        """Whether layer ``layer_idx`` carries attention heads."""
        return self.layer_kind(layer_idx) != "state"

    def layer_kind(self, layer_idx: int) -> str:
        """``hybrid``, ``attention`` or ``state``: which heads layer ``layer_idx`` has."""
        if self.layers is not None:
            return expand_layers(self.layers, self.num_hidden_layers)[layer_idx]
        if not self.num_attention_heads:
            return "state"
        listed = self.state_layers is None or layer_idx in self.state_layers
        return "hybrid" if self.num_state_heads and listed else "attention"

    def has_rope(self, layer_idx: int) -> bool:
        """Whether attention of layer ``layer_idx`` turns queries and keys by their positions."""
        return self.rope_layers is None or layer_idx in self.rope_layers

    def has_experts(self, layer_idx: int) -> bool:
        """Whether the feed-forward layer of layer ``layer_idx`` is a mixture of experts."""
        listed = self.moe_layers is None or layer_idx in self.moe_layers
        return bool(self.num_experts) and listed

    @property
    def first_state_layer(self) -> int:
        """The layer whose values the value residual reaches back to."""
        if self.layers is None:
            return 0
        return next((i for i in range(self.num_hidden_layers) if self.has_state(i)), 0)

    def state_source(self, which: str, layer_idx: int) -> str:
        """Where a layer's state heads take their ``key`` or ``value`` from: their own projection
        in a layer without attention, else what ``state_key_source`` or ``state_value_source`` say.
        """
        if not self.has_attention(layer_idx):
            return "own"
        return str(getattr(self, f"state_{which}_source"))

    @property
    def branch_init(self) -> str:
        """How the output of state and middle heads starts: ``state_branch_init``, or as every other
        output projection."""
        return str(self.state_branch_init or self.output_init)

    def is_sliding(self, layer_idx: int) -> bool:
        """Whether layer ``layer_idx`` attends within ``sliding_window`` tokens only."""
        if self.sliding_window is None:
            return False
        listed = self.sliding_window_layers is None or layer_idx in self.sliding_window_layers
        return listed and self.has_attention(layer_idx)
