"""From the configuration of a Llama, Qwen2, Qwen3 or Mistral to WuNeng's, field by field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from wuneng.errors import ModelError, file_errors, nearest
from wuneng.model import WuNengConfig

__all__ = ["STOCK", "plain_fields", "stock_config"]

STOCK: dict[str, type[PreTrainedConfig]] = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "mistral": MistralConfig,
}
_COMMON = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
    "rope_parameters",
    "attention_dropout",
)
_SIZES = _COMMON[:6]
_LARGEST = 1 << 31


def plain_fields(config: Mapping[str, Any], kind: str, where: str) -> dict[str, Any]:
    """WuNengConfig's fields for the attention model that ``config`` (of type ``kind``) describes.

    Raises:
        ModelError: a field is missing, out of range or of a kind that WuNeng does not have.
    """
    try:
        source = STOCK[kind].from_dict(dict(config))
    except Exception as error:  # configuration classes raise whatever a bad value leads to
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ModelError(
            f"{where}: not a usable {kind} configuration: {' '.join(lines)[:300]}"
        ) from (error)
    # Fields that transformers does not check may be anything, lists where a name belongs too.
    with file_errors(f"{where}: not a usable {kind} configuration", ModelError):
        return _checked_fields(source, kind, where)


def _checked_fields(source: PreTrainedConfig, kind: str, where: str) -> dict[str, Any]:
    fields: dict[str, Any] = {name: getattr(source, name) for name in _COMMON}
    fields["head_dim"] = _head_dim(source)
    for name in (*_SIZES, "head_dim"):
        value = fields[name]
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < _LARGEST:
            raise ModelError(f"{where}: {name} must be a positive whole number, got {value!r}")
    if fields["hidden_act"] not in ACT2FN:
        act = str(fields["hidden_act"])
        raise ModelError(f"{where}: hidden_act {act!r} is not known.{nearest(act, ACT2FN)}")
    _check_rope(fields["rope_parameters"], where)
    fields |= _biases(source, kind) | _sliding(source, kind, where)
    fields["qk_norm"] = kind == "qwen3"
    return fields


def stock_config(config: WuNengConfig) -> PreTrainedConfig:
    """The configuration of the stock model that computes what ``config`` does without its state.

    The type that the model was converted from is preferred where it still fits.

    Raises:
        ModelError: no stock type has what the configuration asks for; says what.
    """
    came_from = getattr(config, "converted_from", None)
    order = sorted(STOCK, key=lambda kind: kind != came_from)
    general = _not_stock(config)
    reasons = {kind: general or _does_not_fit(config, kind) for kind in order}
    for kind, reason in reasons.items():
        if not reason:
            return _as_stock(config, kind)
    listed = "; ".join(f"{kind}: {reason}" for kind, reason in reasons.items())
    raise ModelError(f"no stock architecture has this model's wiring ({general or listed})")


def _head_dim(source: PreTrainedConfig) -> Any:
    explicit = getattr(source, "head_dim", None)
    return explicit or source.hidden_size // source.num_attention_heads


def _check_rope(rope: Any, where: str) -> None:
    if not isinstance(rope, Mapping) or any(isinstance(value, Mapping) for value in rope.values()):
        raise ModelError(f"{where}: rope_parameters must be one set for all layers, got {rope!r}")
    kind = rope.get("rope_type", "default")
    known = {"default", *ROPE_INIT_FUNCTIONS} - {"proportional"}
    if kind not in known:
        raise ModelError(
            f"{where}: rope_type {kind!r} is not supported; expected one of "
            f"{', '.join(sorted(known))}.{nearest(str(kind), known)}"
        )


def _biases(source: PreTrainedConfig, kind: str) -> dict[str, Any]:
    if kind == "qwen2":
        return {"attention_bias": True, "attention_output_bias": False, "mlp_bias": False}
    bias = bool(getattr(source, "attention_bias", False)) and kind != "mistral"
    mlp = bool(getattr(source, "mlp_bias", False)) and kind == "llama"
    return {"attention_bias": bias, "attention_output_bias": bias, "mlp_bias": mlp}


def _sliding(source: PreTrainedConfig, kind: str, where: str) -> dict[str, Any]:
    window = getattr(source, "sliding_window", None) if kind != "llama" else None
    if window is None:
        return {"sliding_window": None, "sliding_window_layers": None}
    if not isinstance(window, int) or window < 1:
        raise ModelError(f"{where}: sliding_window must be a positive number, got {window!r}")
    if kind == "mistral":
        return {"sliding_window": window, "sliding_window_layers": None}
    types = source.layer_types
    if len(types) != source.num_hidden_layers:
        raise ModelError(
            f"{where}: layer_types names {len(types)} layers, num_hidden_layers is "
            f"{source.num_hidden_layers}"
        )
    unknown = set(types) - {"full_attention", "sliding_attention"}
    if unknown:
        raise ModelError(f"{where}: layer_types has {sorted(unknown)[0]!r}, which is not supported")
    layers = [i for i, name in enumerate(types) if name == "sliding_attention"]
    if not layers:
        return {"sliding_window": None, "sliding_window_layers": None}
    everywhere = len(layers) == len(types)
    return {"sliding_window": window, "sliding_window_layers": None if everywhere else layers}


def _not_stock(config: WuNengConfig) -> str:
    """What no stock type has; empty if nothing stands in the way."""
    plain = {
        "ffn": "swiglu",
        "norm": "rmsnorm",
        "embedding_norm": False,
        "attention_token_shift": False,
    }
    for name, value in plain.items():
        if getattr(config, name) != value:
            return f"{name} is {getattr(config, name)!r}, stock models have {value!r}"
    return "" if config.num_attention_heads else "there are no attention heads"


def _does_not_fit(config: WuNengConfig, kind: str) -> str:
    """Why ``kind`` cannot express the configuration; empty if it can."""
    bias, output_bias = config.attention_bias, config.attention_output_bias
    if config.qk_norm != (kind == "qwen3"):
        return "q/k norm" if config.qk_norm else "has q/k norm"
    if kind == "qwen2":
        if not bias or output_bias:
            return "has biases on q, k and v only"
    elif bias != output_bias:
        return "has biases on all four attention projections or on none"
    elif kind == "mistral" and bias:
        return "has no attention bias"
    if config.mlp_bias and kind != "llama":
        return "has no feed-forward bias"
    if config.sliding_window is not None:
        if kind == "llama":
            return "has no sliding window"
        if kind == "mistral" and config.sliding_window_layers is not None:
            return "has the sliding window in every layer"
    if kind == "llama" and config.hidden_size % config.num_attention_heads:
        return "needs hidden_size to be a multiple of num_attention_heads"
    return ""


def _as_stock(config: WuNengConfig, kind: str) -> PreTrainedConfig:
    fields: dict[str, Any] = {name: getattr(config, name) for name in _COMMON}
    fields |= {"head_dim": config.head_dim, "dtype": config.dtype}
    if kind == "llama":
        fields |= {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}
    elif kind == "mistral":
        fields["sliding_window"] = config.sliding_window
    else:
        fields["use_sliding_window"] = config.sliding_window is not None
        fields["sliding_window"] = config.sliding_window or 4096
        fields["layer_types"] = [
            "sliding_attention" if config.is_sliding(layer) else "full_attention"
            for layer in range(config.num_hidden_layers)
        ]
        if kind == "qwen3":
            fields["attention_bias"] = config.attention_bias
    stock = STOCK[kind](**fields)
    stock.architectures = [f"{kind.capitalize()}ForCausalLM"]
    return stock
