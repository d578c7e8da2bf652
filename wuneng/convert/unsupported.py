"""Why an architecture cannot be converted, read off its configuration.

Architectures are told apart by ``model_type`` and by fields, never guessed: whatever computes
something that a WuNeng layer does not is refused, with the field that says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wuneng.convert.families import FAMILIES, Family, family_of
from wuneng.errors import ModelError, nearest

__all__ = ["check_supported", "ruled_out"]

#: field -> what a model with that field does; the field counts when it is set to something.
_FIELDS: dict[str, str] = {
    "num_local_experts": "a mixture of experts",
    "num_experts": "a mixture of experts",
    "n_routed_experts": "a mixture of experts",
    "moe_num_experts": "a mixture of experts",
    "ffn_config.moe_num_experts": "a mixture of experts",
    "kv_lora_rank": "multi-head latent attention (MLA)",
    "alibi": "ALiBi positions",
    "use_alibi": "ALiBi positions",
    "attn_config.alibi": "ALiBi positions",
    "attention_sinks": "attention sinks",
    "use_attention_sinks": "attention sinks",
    "attn_logit_softcapping": "soft-capped attention logits",
    "final_logit_softcapping": "soft-capped output logits",
    "query_pre_attn_scalar": "its own scale of attention logits",
    "attention_multiplier": "its own scale of attention logits",
    "embedding_multiplier": "scaled embeddings",
    "residual_multiplier": "scaled residuals",
    "logits_scaling": "scaled output logits",
    "logit_scale": "scaled output logits",
    "parallel_attn": "attention and feed-forward in parallel",
    "use_parallel_residual": "attention and feed-forward in parallel",
    "quantization_config": "quantised weights",
    "vision_config": "an image encoder",
    "audio_config": "an audio encoder",
    "text_config": "a text model inside a multimodal one",
    "ssm_cfg": "state-space layers",
    "mamba_d_state": "state-space layers",
    "linear_num_key_heads": "linear attention layers of another kind",
    "is_encoder_decoder": "an encoder and a decoder",
    "n_positions": "learned absolute positions",
    "no_rope_layers": "layers without rotary positions",
    "cross_attention_layers": "cross-attention",
    "resid_pdrop": "dropout of what a layer adds",
    "use_bidirectional_attention": "attention to later tokens",
}
#: model types whose configuration does not say it in a field.
_TYPES = {
    "gpt_oss": "attention sinks and a mixture of experts",
    "bloom": "ALiBi positions",
    "mpt": "ALiBi positions",
    "rwkv": "RWKV-4's recurrence",
    "rwkv5": "RWKV-5's recurrence",
    "rwkv6": "RWKV-6's recurrence",
    "rwkv6qwen2": "QRWKV-6: RWKV-6's recurrence in a Qwen2",
    "rwkv7qwen2": "QRWKV-7, of RADLADS: a Qwen2 whose attention is an RWKV-7 with grouped keys",
    "rwkv_hybrid": "ARWKV: a Qwen2 whose attention is an RWKV-7 of its own kind",
    "qwen3_next": "a hybrid: Gated DeltaNet beside gated attention, and a mixture of experts",
    "qwen3_5": "a hybrid: Gated DeltaNet beside gated attention",
    "qwen3_5_text": "a hybrid: Gated DeltaNet beside gated attention",
    "qwen3_5_moe": "a hybrid: Gated DeltaNet beside gated attention, and a mixture of experts",
    "qwen3_5_moe_text": "a hybrid: Gated DeltaNet beside gated attention, and a mixture of experts",
    "olmo_hybrid": "a hybrid: Gated DeltaNet beside attention",
    "kimi_linear": "a hybrid: Kimi Delta Attention beside latent attention (MLA)",
    "falcon_h1": "a hybrid: Mamba-2 and attention in one layer",
    "jamba": "a hybrid: Mamba beside attention, and a mixture of experts",
    "bamba": "a hybrid: Mamba-2 beside attention",
    "granitemoehybrid": "a hybrid: Mamba-2 beside attention",
    "nemotron_h": "a hybrid: Mamba-2 beside attention",
    "zamba": "a hybrid: Mamba and an attention layer that is shared",
    "zamba2": "a hybrid: Mamba-2 and attention layers that are shared",
    "lfm2": "a hybrid: gated short convolutions beside attention",
    "lfm2_moe": "a hybrid: gated short convolutions beside attention, and a mixture of experts",
    "recurrent_gemma": "a hybrid: gated linear recurrences beside attention",
    "minimax": "a hybrid: lightning attention beside attention, and a mixture of experts",
    "mamba": "Mamba's state-space layers",
    "mamba2": "Mamba-2's state-space layers",
    "falcon_mamba": "Mamba's state-space layers",
    "xlstm": "xLSTM's recurrence",
}
#: Kinds of attention that ``layer_types`` may name.
_ATTENTION = ("full_attention", "sliding_attention")


def ruled_out(config: Mapping[str, Any], family: Family | None = None) -> list[str]:
    """What in the configuration a WuNeng layer does not compute, as ``field: meaning``.

    Args:
        family: whose record says of some fields that they are taken over.
    """
    found = []
    for field, meaning in _FIELDS.items():
        if family is not None and field in family.reads:
            continue
        value: Any = config
        for part in field.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if _is_set(field, value):
            shown = value if isinstance(value, bool | int | float | str) else "..."
            found.append(f"{field}: {shown} ({meaning})")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    for where in (config, rope if isinstance(rope, Mapping) else {}):
        factor = where.get("partial_rotary_factor")
        if family is not None and "partial_rotary_factor" in family.reads:
            continue
        if isinstance(factor, int | float) and factor != 1:
            found.append(f"partial_rotary_factor: {factor} (positions on a part of each head)")
    types = config.get("layer_types")
    others = {str(one) for one in types} - {*_ATTENTION} if isinstance(types, list) else set()
    if others:
        found.append(f"layer_types: {min(others)} (layers of another kind)")
    kind = str(config.get("model_type"))
    if kind in _TYPES:
        found.append(f"model_type: {kind} ({_TYPES[kind]})")
    return found


def check_supported(config: Mapping[str, Any], where: str) -> Family:
    """The family of the configuration.

    Raises:
        ModelError: it is of none of :data:`FAMILIES`, or a field asks for what is not computed.
    """
    name = config.get("model_type")
    if not isinstance(name, str):
        raise ModelError(f"{where}: no 'model_type'; expected the configuration of a model")
    family = family_of(name)
    # RWKV-7 and our own have readers of their own, which refuse by field.
    reasons = ruled_out(config, family) if family is None or family.role == "attention" else []
    if family is not None and not reasons:
        return family
    message = f"{where}: model_type {name!r} cannot be converted.{nearest(name, FAMILIES)}"
    if family is not None:
        message = f"{where}: this {family.title} model cannot be converted."
    if reasons:
        message += "\nruled out by " + "; ".join(reasons)
    supported = ", ".join(f"{family.title} ({key})" for key, family in FAMILIES.items())
    raise ModelError(f"{message}\nsupported: {supported}, and RWKV-7 .pth files (x070)")


def _is_set(field: str, value: Any) -> bool:
    if value is None or value is False or value == {} or value == []:
        return False
    if field in ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"):
        return bool(value)
    if field == "no_rope_layers" and isinstance(value, list):
        return not all(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        neutral = 1.0 if field.endswith(("multiplier", "scaling", "scale")) else 0
        return value != neutral
    return True
