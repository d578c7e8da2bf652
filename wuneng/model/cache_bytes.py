"""What a model keeps of each sequence while it generates, counted from its configuration."""

from __future__ import annotations

from wuneng.kinds import load_kind
from wuneng.model.configuration import WuNengConfig

__all__ = ["cache_bytes", "sequence_bytes"]

_STATE_BYTES = 4
"""Of one element of a state: float32, whatever the model computes in."""


def cache_bytes(config: WuNengConfig, batch: int, tokens: int, element: int) -> dict[str, int]:
    """What a cache of ``tokens`` holds, counted: ``kv_bytes`` and ``state_bytes``."""
    kv = state = 0
    groups = config.num_key_value_heads or 0
    for layer in range(config.num_hidden_layers):
        seen = tokens if config.has_attention(layer) else 0
        if config.is_sliding(layer):
            seen = min(tokens, (config.sliding_window or tokens) - 1)
        kv += 2 * groups * (config.head_dim or 0) * seen * element
        state += _layer_state_bytes(config, layer, element)
    return {"kv_bytes": batch * kv, "state_bytes": batch * state}


def sequence_bytes(config: WuNengConfig, tokens: int) -> dict[str, int]:
    """Of one sequence in float32, as records name them: ``cache_bytes`` (keys and values of
    ``tokens`` tokens) and ``state_bytes``."""
    counted = cache_bytes(config, 1, tokens, 4)
    return {"cache_bytes": counted["kv_bytes"], "state_bytes": counted["state_bytes"]}


def _layer_state_bytes(config: WuNengConfig, layer: int, element: int) -> int:
    total = 0
    if config.has_attention(layer):
        groups = config.num_key_value_heads or 0
        if config.attention_token_shift:
            total += 2 * groups * (config.head_dim or 0) * element
        if taps := config.attention_short_conv:
            heads = config.num_attention_heads + 2 * groups
            total += (taps - 1) * heads * (config.head_dim or 0) * element
    if config.ffn == "rwkv7":
        total += config.hidden_size * element
    if not config.has_state(layer):
        return total
    heads, size = config.num_state_heads, config.state_head_dim or 0
    recurrent = load_kind("state", config.state_kind).state_elements(config)  # type: ignore[attr-defined]
    total += recurrent * _STATE_BYTES * (1 + config.snapshots)
    if config.state_short_conv:
        total += (config.state_short_conv - 1) * 3 * heads * size * element
    total += 8 if config.snapshots else 0  # tokens seen
    if config.token_shift == "post":
        total += len(config.token_shift_on) * heads * size * element
    elif config.token_shift == "pre":
        total += config.hidden_size * element
    return total
