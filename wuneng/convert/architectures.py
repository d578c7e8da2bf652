"""From the configuration of a stock Transformer to WuNeng's and back, field by field.

What sets the families apart is in their records (``families``); here is what follows from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from wuneng.convert.families import FAMILIES, WIRING, Family
from wuneng.convert.rope_fields import rope_fields, rope_that_does_not_fit, stock_rope
from wuneng.errors import ModelError, file_errors, nearest
from wuneng.model import WuNengConfig

__all__ = ["as_stock", "does_not_fit", "plain_fields", "stock_config"]

_COMMON = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
    "attention_dropout",
)
_SIZES = _COMMON[:6]
_LARGEST = 1 << 31


def plain_fields(config: Mapping[str, Any], family: Family, where: str) -> dict[str, Any]:
    """WuNengConfig's fields for the attention model that ``config`` (of ``family``) describes.

    Raises:
        ModelError: a field is missing, out of range or of a kind that WuNeng does not have.
    """
    name = family.model_type
    try:
        source = _configuration(family).from_dict(dict(config))
    except Exception as error:  # configuration classes raise whatever a bad value leads to
        raise ModelError(
            f"{where}: not a usable {name} configuration: {_on_one_line(error)}"
        ) from error
    # Fields that transformers does not check may be anything, lists where a name belongs too.
    with file_errors(f"{where}: not a usable {name} configuration", ModelError):
        return _checked_fields(source, family, where)


def _on_one_line(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())[:300]


def _configuration(family: Family) -> type[PreTrainedConfig]:
    return CONFIG_MAPPING[family.model_type]


def _checked_fields(source: PreTrainedConfig, family: Family, where: str) -> dict[str, Any]:
    fields: dict[str, Any] = {name: getattr(source, name) for name in _COMMON}
    fields["head_dim"] = _head_dim(source)
    fields["hidden_act"] = getattr(source, family.activation)
    for name in (*_SIZES, "head_dim"):
        value = fields[name]
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < _LARGEST:
            raise ModelError(f"{where}: {name} must be a positive whole number, got {value!r}")
    if fields["hidden_act"] not in ACT2FN:
        act = str(fields["hidden_act"])
        name = family.activation
        raise ModelError(f"{where}: {name} {act!r} is not known.{nearest(act, ACT2FN)}")
    fields |= {
        ours: theirs if isinstance(theirs, bool) else bool(getattr(source, theirs, False))
        for ours, theirs in family.biases.items()
    }
    fields |= _sliding(source, family, where)
    fields |= rope_fields(source, family, fields["sliding_window"] is not None, where)
    fields["qk_norm"] = family.qk_norm
    fields |= family.wiring
    fields |= {ours: getattr(source, theirs) for ours, theirs in family.fields.items()}
    if family.has_experts:
        fields["moe_layers"] = _layers_of_experts(source)
    if family.query_scalar:
        fields["attention_multiplier"] = _positive(source, "query_pre_attn_scalar", where) ** -0.5
    return fields


def _layers_of_experts(source: Any) -> list[int] | None:
    step, without = source.decoder_sparse_step, source.mlp_only_layers
    layers = range(source.num_hidden_layers)
    found = [i for i in layers if i not in without and (i + 1) % step == 0]
    return None if len(found) == len(layers) else found


def _positive(source: PreTrainedConfig, name: str, where: str) -> float:
    value: Any = getattr(source, name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise ModelError(f"{where}: {name} must be a positive number, got {value!r}")
    return value


def stock_config(config: WuNengConfig) -> PreTrainedConfig:
    """The configuration of the stock model that computes what ``config`` does without its state.

    The type that the model was converted from is preferred where it still fits.

    Raises:
        ModelError: no stock type has what the configuration asks for; says what.
    """
    came_from = getattr(config, "converted_from", None)
    stock = [family for family in FAMILIES.values() if family.role == "attention"]
    stock.sort(key=lambda family: family.model_type != came_from)
    reasons = {family.model_type: does_not_fit(config, family) for family in stock}
    for family in stock:
        if not reasons[family.model_type]:
            return as_stock(config, family)
    listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    reason = _not_stock(config) or listed
    raise ModelError(f"no stock architecture has this model's wiring ({reason})")


def _head_dim(source: PreTrainedConfig) -> Any:
    return getattr(source, "head_dim", None) or _usual_head_dim(source)


def _usual_head_dim(config: Any) -> int:
    return int(config.hidden_size // config.num_attention_heads)


def _sliding(source: PreTrainedConfig, family: Family, where: str) -> dict[str, Any]:
    window = None if family.window == "none" else getattr(source, "sliding_window", None)
    if window is None:
        return {"sliding_window": None, "sliding_window_layers": None}
    if not isinstance(window, int) or window < 1:
        raise ModelError(f"{where}: sliding_window must be a positive number, got {window!r}")
    if family.window == "all":
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
        "embedding_norm": False,
        "attention_token_shift": False,
        "attention_short_conv": 0,
        "attention_output_gate": False,
    }
    for name, value in plain.items():
        if getattr(config, name) != value:
            return f"{name} is {getattr(config, name)!r}, stock models have {value!r}"
    if all(config.has_attention(layer) for layer in range(config.num_hidden_layers)):
        return ""
    return "not every layer has attention heads"


def does_not_fit(config: WuNengConfig, family: Family) -> str:
    """Why no stock model of ``family`` computes what ``config`` does without its state; empty
    where one does."""
    if general := _not_stock(config):
        return general
    if config.qk_norm != family.qk_norm:
        return "q/k norm" if config.qk_norm else "has q/k norm"
    if wrong := _wiring_that_does_not_fit(config, family):
        return wrong
    if bool(config.num_experts) != family.has_experts:
        return "has experts" if family.has_experts else "has no experts"
    if wrong := rope_that_does_not_fit(config, family):
        return wrong
    if wrong := _biases_that_do_not_fit(config, family):
        return wrong
    if config.sliding_window is not None:
        if family.window == "none":
            return "has no sliding window"
        if family.window == "all" and config.sliding_window_layers is not None:
            return "has the sliding window in every layer"
    if family.even_width and config.hidden_size % config.num_attention_heads:
        return "needs hidden_size to be a multiple of num_attention_heads"
    return ""


def _wiring_that_does_not_fit(config: WuNengConfig, family: Family) -> str:
    for name in WIRING:
        wanted = family.wiring.get(name, getattr(WuNengConfig, name))
        value = getattr(config, name)
        if name == "attention_multiplier" and family.query_scalar:
            if _query_scalar(config) ** -0.5 != _scale(config):
                return f"{name} is {value!r}, not 1 over the root of a whole number"
        elif name not in family.fields and value != wanted:
            return f"{name} is {value!r}, a {family.title} has {wanted!r}"
    return ""


def _scale(config: WuNengConfig) -> float:
    return float(config.attention_multiplier or (config.head_dim or 1) ** -0.5)


def _query_scalar(config: WuNengConfig) -> int:
    return max(1, round(_scale(config) ** -2))


def _biases_that_do_not_fit(config: WuNengConfig, family: Family) -> str:
    wanted: dict[str, set[bool]] = {}
    for ours, theirs in family.biases.items():
        if isinstance(theirs, str):
            wanted.setdefault(theirs, set()).add(getattr(config, ours))
    fixed = {ours: value for ours, value in family.biases.items() if isinstance(value, bool)}
    wrong = [ours for ours, value in fixed.items() if getattr(config, ours) != value]
    if wrong == ["mlp_bias"]:
        return "has no feed-forward bias"
    if wrong:
        return "has biases on q, k and v only" if any(fixed.values()) else "has no attention bias"
    if any(len(values) > 1 for values in wanted.values()):
        return "has biases on all four attention projections or on none"
    return ""


def as_stock(config: WuNengConfig, family: Family) -> PreTrainedConfig:
    """The configuration of a stock model of ``family`` with the shapes of ``config``.

    What ``family`` cannot compute (:func:`does_not_fit`) is left out without a word.

    Raises:
        ModelError: transformers refuses a value that a WuNeng may have.
    """
    kind = _configuration(family)
    fields: dict[str, Any] = {name: getattr(config, name) for name in _COMMON}
    fields |= {family.activation: config.hidden_act, "dtype": config.dtype}
    fields |= stock_rope(config, family)
    if hasattr(kind, "head_dim") or config.head_dim != _usual_head_dim(config):
        fields["head_dim"] = config.head_dim
    for ours, theirs in family.biases.items():
        if isinstance(theirs, str):
            fields[theirs] = getattr(config, ours)
    fields |= {theirs: getattr(config, ours) for ours, theirs in family.fields.items()}
    if family.has_experts:
        layers = range(config.num_hidden_layers)
        fields["mlp_only_layers"] = [i for i in layers if not config.has_experts(i)]
    if family.query_scalar:
        fields["query_pre_attn_scalar"] = _query_scalar(config)
    if "attention_multiplier" in fields:
        fields["attention_multiplier"] = _scale(config)
    if family.window == "all":
        fields["sliding_window"] = config.sliding_window
        if hasattr(kind, "use_sliding_window"):
            fields["use_sliding_window"] = config.sliding_window is not None
    elif family.window == "layers":
        if hasattr(kind, "use_sliding_window"):
            fields["use_sliding_window"] = config.sliding_window is not None
        unused = getattr(kind, "sliding_window", None)
        fields["sliding_window"] = config.sliding_window or unused
        fields["layer_types"] = [
            "sliding_attention" if config.is_sliding(layer) else "full_attention"
            for layer in range(config.num_hidden_layers)
        ]
    try:
        stock = kind(**fields)
    except Exception as error:  # configuration classes raise whatever a bad value leads to
        raise ModelError(f"a {family.model_type} cannot be made: {_on_one_line(error)}") from error
    stock.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family.model_type]]
    return stock
