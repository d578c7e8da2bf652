"""Rules that tie fields of a configuration together; each raises ValueError, naming the field."""

from __future__ import annotations

from typing import Any

from wuneng.model.field_types import is_finite_number

__all__ = ["check_experts", "check_heads", "check_rope"]


def check_heads(config: Any) -> None:
    """How many heads there are of each kind, and how large they are."""
    heads, groups, states = (
        config.num_attention_heads,
        config.num_key_value_heads,
        config.num_state_heads,
    )
    if heads == 0 and states == 0:
        raise ValueError("num_attention_heads and num_state_heads must be not both 0")
    if heads and config.head_dim and config.head_dim % 2:
        raise ValueError(
            "head_dim (hidden_size / num_attention_heads where it is left out) must be even, "
            f"got {config.head_dim}"
        )
    if heads and (groups is None or groups < 1 or heads % groups):
        raise ValueError(
            f"num_key_value_heads must divide num_attention_heads ({heads}), got {groups}"
        )
    if not heads and states:
        if config.state_key_source != "own" or config.state_value_source != "own":
            raise ValueError(
                "num_attention_heads is 0, so state_key_source and state_value_source must be "
                f"'own', got {config.state_key_source!r} and {config.state_value_source!r}"
            )
        if config.state_layers is not None:
            raise ValueError("num_attention_heads is 0, so state_layers must cover all layers")
    if config.cross_head != "none" and config.state_head_dim != config.head_dim:
        raise ValueError(
            f"cross_head {config.cross_head!r} needs state_head_dim equal to head_dim "
            f"({config.head_dim}), got {config.state_head_dim}"
        )
    if config.cross_head != "none" and heads % states and states % heads:
        raise ValueError(
            f"cross_head {config.cross_head!r} groups heads evenly: num_attention_heads "
            f"({heads}) must be a multiple of num_state_heads ({states}), or the reverse"
        )


def check_experts(config: Any) -> None:
    """A mixture of experts: how many, how wide, and which layers have it."""
    if not config.num_experts:
        if config.moe_layers is not None:
            raise ValueError("moe_layers needs num_experts")
        return
    if config.ffn != "swiglu" or config.mlp_bias:
        raise ValueError("num_experts goes with ffn 'swiglu', without mlp_bias")
    if config.moe_intermediate_size is None:
        raise ValueError("num_experts needs moe_intermediate_size")
    if config.num_experts_per_tok > config.num_experts:
        raise ValueError(
            f"num_experts_per_tok must be at most num_experts ({config.num_experts}), got "
            f"{config.num_experts_per_tok}"
        )


def check_rope(config: Any) -> None:
    """Rotary positions: of all layers, and of those with a sliding window."""
    _check_one_rope(config.rope_parameters or {})
    if config.sliding_rope_parameters is not None:
        if config.sliding_window is None:
            raise ValueError("sliding_rope_parameters needs sliding_window")
        if "rope_type" not in config.sliding_rope_parameters:
            raise ValueError("sliding_rope_parameters must state rope_type")
        _check_one_rope(config.sliding_rope_parameters)


def _check_one_rope(rope: dict[str, Any]) -> None:
    theta, part = rope.get("rope_theta", 1.0), rope.get("partial_rotary_factor")
    if not is_finite_number(theta) or theta <= 0:
        raise ValueError(f"rope_theta must be a number above 0, got {theta!r}")
    if part is not None and (not is_finite_number(part) or not 0 < part <= 1):
        raise ValueError(f"partial_rotary_factor must lie above 0 and up to 1, got {part!r}")
