"""The checkpoint architectures that convert, one record each.

To add a family whose layers a WuNeng layer computes, and whose tensors have Llama's names, add its
record to :data:`FAMILIES` and a source of its kind to the tests; nothing else asks which family a
checkpoint is of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["FAMILIES", "OWN_WIRING", "WIRING", "Family", "bias_fields", "family_of"]

Bias = str | bool
Role = Literal["attention", "state", "wuneng"]


def bias_fields(query_key_value: Bias, output: Bias, mlp: Bias) -> dict[str, Bias]:
    """WuNeng's fields for biases, each with the family's own field, or with what it always is."""
    return {
        "attention_bias": query_key_value,
        "attention_output_bias": output,
        "mlp_bias": mlp,
    }


#: Fields of WuNeng that set the layers of one family apart from those of another.
WIRING = (
    *("norm", "norm_placement", "qk_norm_over", "scaled_embedding", "embedding_multiplier"),
    *("attention_multiplier", "attention_softcap", "residual_multiplier"),
    *("logits_scaling", "logit_softcap", "rope_float32"),
    *("num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob"),
)
#: The same, of what families say each in a way of their own.
OWN_WIRING = ("rope_layers", "sliding_rope_parameters", "longrope_recompute", "moe_layers")
#: What a layer of Gemma has and a Llama's has not.
_GEMMA = {"norm": "rmsnorm_plus_one", "norm_placement": "both", "scaled_embedding": True}
#: What a layer of OLMo 2 has and a Llama's has not.
_OLMO = {
    "norm": "rmsnorm_wide",
    "norm_placement": "post",
    "qk_norm_over": "width",
    "rope_float32": True,
}


def _same_names(*names: str) -> dict[str, str]:
    return {name: name for name in names}


@dataclass(frozen=True)
class Family:
    """What checkpoints of one ``model_type`` are and how their configuration says it.

    Attributes:
        model_type: as config.json spells it.
        title: what people call it.
        role: ``attention``: a Transformer, which state heads can be added to; ``state``: RWKV-7,
            which becomes a model of state heads alone; ``wuneng``: our own.
        spellings: other model types of the same checkpoints.

    The rest concerns Transformers.

    Attributes:
        qk_norm: whether queries and keys are normalised per head.
        biases: WuNeng's field for a bias to the family's field, or to what it always is.
            Left out: there are none.
        window: ``none``: no sliding window; ``all``: ``sliding_window`` holds in every layer;
            ``layers``: in those that ``layer_types`` names.
        even_width: whether the hidden size must be a multiple of the number of heads even where
            ``head_dim`` is given.
        fields: of :data:`WIRING`, those that each checkpoint says for itself, to the family's own
            name for it.
        wiring: of :data:`WIRING`, what the others are in every checkpoint of the family. Left out:
            as in a Llama.
        activation: the family's own name of ``hidden_act``.
        query_scalar: whether ``query_pre_attn_scalar`` says what attention's logits are divided by
            the square root of.
        rope: ``one`` set of rotary positions, or one ``by_type`` of layer.
        partial_rotary: whether a part of each head's channels may turn alone.
        longrope_recompute: whether ``generate()`` reads the text anew where longrope's factors
            change.
        has_no_rope_layers: whether ``no_rope_layers`` says which layers have rotary positions.
        fused: what the family stores as one matrix, by the ends of names.
        has_experts: whether layers are mixtures of experts, which checkpoints store one by one.
        idle: fields that ask for something else elsewhere, and that this family does not read.
    """

    model_type: str
    title: str
    role: Role
    spellings: tuple[str, ...] = ()
    qk_norm: bool = False
    biases: Mapping[str, Bias] = field(default_factory=lambda: bias_fields(False, False, False))
    window: Literal["none", "all", "layers"] = "none"
    even_width: bool = False
    fields: Mapping[str, str] = field(default_factory=dict)
    wiring: Mapping[str, Any] = field(default_factory=dict)
    activation: str = "hidden_act"
    query_scalar: bool = False
    rope: Literal["one", "by_type"] = "one"
    partial_rotary: bool = False
    longrope_recompute: bool = False
    has_no_rope_layers: bool = False
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    idle: tuple[str, ...] = ()
    has_experts: bool = False

    @property
    def reads(self) -> frozenset[str]:
        """Fields of a checkpoint's configuration that are no reason to refuse it."""
        others = {
            "query_pre_attn_scalar": self.query_scalar,
            "partial_rotary_factor": self.partial_rotary,
            "no_rope_layers": self.has_no_rope_layers,
        }
        taken = [name for name, is_taken in others.items() if is_taken]
        return frozenset([*self.fields.values(), *taken, *self.idle])


_RECORDS = (
    Family(
        "llama",
        "Llama",
        "attention",
        biases=bias_fields("attention_bias", "attention_bias", "mlp_bias"),
        even_width=True,
    ),
    Family("qwen2", "Qwen2", "attention", biases=bias_fields(True, False, False), window="layers"),
    Family(
        "qwen3",
        "Qwen3",
        "attention",
        qk_norm=True,
        biases=bias_fields("attention_bias", "attention_bias", False),
        window="layers",
    ),
    Family("mistral", "Mistral", "attention", window="all"),
    Family(
        "qwen3_moe",
        "Qwen3-MoE",
        "attention",
        qk_norm=True,
        biases=bias_fields("attention_bias", "attention_bias", False),
        window="all",
        has_experts=True,
        fields=_same_names(
            *("num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob"),
        ),
        idle=("num_local_experts",),
    ),
    Family(
        "granite",
        "Granite",
        "attention",
        biases=bias_fields("attention_bias", "attention_bias", "mlp_bias"),
        fields=_same_names(
            *("embedding_multiplier", "attention_multiplier"),
            *("residual_multiplier", "logits_scaling"),
        ),
    ),
    Family(
        "smollm3",
        "SmolLM3",
        "attention",
        biases=bias_fields("attention_bias", "attention_bias", "mlp_bias"),
        window="layers",
        has_no_rope_layers=True,
    ),
    Family(
        "phi3",
        "Phi-3",
        "attention",
        window="all",
        partial_rotary=True,
        longrope_recompute=True,
        fused={
            "self_attn.qkv_proj.weight": tuple(f"self_attn.{n}_proj.weight" for n in "qkv"),
            "mlp.gate_up_proj.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
        },
    ),
    Family(
        "olmo2",
        "OLMo 2",
        "attention",
        qk_norm=True,
        biases=bias_fields("attention_bias", "attention_bias", False),
        wiring=_OLMO,
    ),
    Family(
        "olmo3",
        "OLMo 3",
        "attention",
        qk_norm=True,
        biases=bias_fields("attention_bias", "attention_bias", False),
        window="layers",
        rope="by_type",
        wiring=_OLMO,
    ),
    Family(
        "gemma2",
        "Gemma 2",
        "attention",
        biases=bias_fields("attention_bias", "attention_bias", False),
        window="layers",
        even_width=True,
        activation="hidden_activation",
        query_scalar=True,
        fields={
            "attention_softcap": "attn_logit_softcapping",
            "logit_softcap": "final_logit_softcapping",
        },
        wiring=_GEMMA,
    ),
    Family(
        "gemma3_text",
        "Gemma 3 text",
        "attention",
        qk_norm=True,
        biases=bias_fields("attention_bias", "attention_bias", False),
        window="layers",
        even_width=True,
        activation="hidden_activation",
        query_scalar=True,
        rope="by_type",
        fields={"logit_softcap": "final_logit_softcapping"},
        idle=("attn_logit_softcapping",),
        wiring=_GEMMA,
    ),
    Family("rwkv7", "RWKV-7 in the fla layout", "state", spellings=("rwkv7_fla",)),
    Family("wuneng", "WuNeng", "wuneng"),
)

#: By model type; a stock model is looked for in this order.
FAMILIES: dict[str, Family] = {family.model_type: family for family in _RECORDS}


def family_of(model_type: str) -> Family | None:
    """The family of a configuration's ``model_type``; None where it does not convert."""
    spelled = (f for f in FAMILIES.values() if model_type in (f.model_type, *f.spellings))
    return next(spelled, None)
