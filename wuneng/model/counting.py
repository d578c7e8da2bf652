"""Counting: parameters by part and training FLOPs.

Nothing is allocated: a model's parts are built on the meta device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wuneng.kinds import load_kind
from wuneng.layers.middle.base import MiddleHeads
from wuneng.layers.state.base import StateHeads
from wuneng.model.configuration import WuNengConfig
from wuneng.model.skeleton import layout

PARTS = ("embedding", "attention", "state heads", "middle heads", "feed-forward", "norms", "output")
ADDED_PARTS = ("state heads", "middle heads")


def parameters_by_part(config: WuNengConfig) -> dict[str, int]:
    """Parameters of each of :data:`PARTS`; a tied output projection counts in the embedding."""
    counts = dict.fromkeys(PARTS, 0)
    built = layout(config).parameters
    for name, shape in built.items():
        mixed = name.replace("branch_proj.weight", "group_mix")  # there where something is mixed
        if name.endswith("cross_head.branch_proj.weight") and mixed in built:
            # its columns see [lambda R; Mid], half and half
            counts["state heads"] += shape.numel() // 2
            counts["middle heads"] += shape.numel() // 2
        else:
            counts[part_of(name)] += shape.numel()
    return counts


def part_of(name: str) -> str:
    """Which of :data:`PARTS` the parameter of a model with this dotted name belongs to."""
    if "embed_tokens" in name:
        return "embedding"
    if name.startswith("lm_head"):
        return "output"
    if ".self_attn." in name:
        return "attention"
    if ".state_heads." in name or name.endswith((".cross_head.scale", "branch_proj.weight")):
        return "state heads"
    if ".cross_head." in name:
        return "middle heads"
    return "feed-forward" if ".mlp." in name else "norms"


def total_parameters(config: WuNengConfig) -> int:
    """All parameters, a tied matrix once."""
    return sum(parameters_by_part(config).values())


def added_percent(parts: Mapping[str, int]) -> float:
    """What state and middle heads add to the rest of the model, in per cent of the rest."""
    added = sum(parts[name] for name in ADDED_PARTS)
    return 100 * added / (sum(parts.values()) - added)


def forward_flops_per_token(config: WuNengConfig, sequence_length: int) -> float:
    """Forward floating-point operations per token of a ``sequence_length``-token sequence.

    Matrix products count 2 per weight. Causal attention reads half the sequence on average (at most
    the sliding window). The state's recurrence counts what its kind says, as the token loop does
    it: chunked kernels spend more, in order to use matrix units, and are not credited for it.
    """
    built = layout(config)
    weights = sum(inputs * outputs for inputs, outputs in built.linears.values())
    state, middle = kinds_of(config)
    for name, shape in built.parameters.items():
        module, _, leaf = name.rpartition(".")
        if module.endswith("_conv"):
            weights += shape.numel()
        elif module.endswith("state_heads"):
            weights += shape.numel() * (leaf in state.matrices)
        elif module.endswith("cross_head"):
            weights += shape.numel() * (leaf in middle.matrices)
    flops = 2.0 * weights
    for layer in range(config.num_hidden_layers):
        if config.has_experts(layer):
            chosen = 3 * config.num_experts_per_tok * (config.moe_intermediate_size or 0)
            flops += 2 * config.hidden_size * (chosen + config.num_experts)  # and the router
        if config.has_attention(layer):
            context = (sequence_length + 1) / 2
            if config.is_sliding(layer):
                context = min(context, float(config.sliding_window or 0))
            flops += 4 * config.num_attention_heads * (config.head_dim or 0) * context
        if config.has_state(layer):
            flops += state.recurrence_flops(config)
    return flops


def kinds_of(config: WuNengConfig) -> tuple[type[StateHeads], type[MiddleHeads]]:
    """The classes of the configuration's state heads and middle heads."""
    return load_kind("state", config.state_kind), load_kind("middle", config.cross_head)


def training_flops_per_token(config: WuNengConfig, sequence_length: int) -> float:
    """Forward and backward together: three times the forward pass."""
    return 3 * forward_flops_per_token(config, sequence_length)


def describe(config: WuNengConfig) -> dict[str, Any]:
    """Parameters by part, their total and the added per cent: what a start prints."""
    parts = parameters_by_part(config)
    return {
        "parts": parts,
        "parameters": sum(parts.values()),
        "added_percent": added_percent(parts),
    }
