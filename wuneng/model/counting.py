"""Counting: parameters by part, training FLOPs and memory.

Nothing is allocated: a model's parts are built on the meta device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from wuneng.kinds import load_kind
from wuneng.layers.middle.base import MiddleHeads
from wuneng.layers.state.base import StateHeads
from wuneng.model.configuration import WuNengConfig
from wuneng.model.skeleton import layout
from wuneng.ops.linear_cross_entropy import WHOLE_BYTES, chunks

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


def memory_estimate(
    config: WuNengConfig,
    *,
    sequences: int,
    sequence_length: int,
    activation_bytes: int = 4,
    recomputed_every: int = 0,
) -> dict[str, int]:
    """Rough bytes of one training step: ``weights``, ``gradients``, ``optimizer``, ``activations``.

    Args:
        recomputed_every: of that many layers one keeps its input alone; 0: all keep everything.

    Weights, gradients and the two Adam moments are float32. Activations count what autograd keeps
    for ``sequences`` of ``sequence_length`` tokens in ``activation_bytes`` each, and float32
    logits with their gradient, whole or a chunk of them; expect the true peak within a factor of
    about 1.5.
    """
    parameters = total_parameters(config)
    tokens = sequences * sequence_length
    return {
        "weights": 4 * parameters,
        "gradients": 4 * parameters,
        "optimizer": 8 * parameters,
        "activations": _activation_bytes(config, tokens, activation_bytes, recomputed_every)
        + logit_bytes(config, tokens),
    }


def logit_bytes(config: WuNengConfig, tokens: int) -> int:
    """Of whole logits, their normalised copy and its gradient; in chunks, of one on a CPU, and of
    the head's gradient, which a tied embedding adds to its own."""
    whole = 4 * tokens * config.vocab_size
    if whole <= WHOLE_BYTES:
        return 3 * whole
    part = next(iter(chunks(config.vocab_size, tokens, torch.device("cpu"))))
    head = config.vocab_size * config.hidden_size if config.tie_word_embeddings else 0
    return 2 * 4 * (part.stop - part.start) * config.vocab_size + 4 * head


def _activation_bytes(config: WuNengConfig, tokens: int, size: int, recomputed_every: int) -> int:
    layers, width = config.num_hidden_layers, config.hidden_size
    head_dim, state_dim = config.head_dim or 0, config.state_head_dim or 0
    of_layer: list[float] = []
    for layer in range(layers):
        numbers: float = 6 * width + 4 * (config.intermediate_size or 0)
        if config.has_attention(layer):
            numbers += 6 * config.num_attention_heads * head_dim
        if config.has_state(layer):
            # r, w, k, v, a, b and their shifted, normalised and chunked copies; states every 32
            # tokens
            numbers += config.num_state_heads * state_dim * (30 + state_dim / 32 * 2)
        of_layer.append(numbers)
    if not recomputed_every:
        return int(tokens * size * sum(of_layer))
    again = range(0, layers, recomputed_every)
    kept = sum(numbers for layer, numbers in enumerate(of_layer) if layer not in again)
    # One at a time is whole again.
    return int(tokens * size * (kept + len(again) * width + max(of_layer[i] for i in again)))


def describe(config: WuNengConfig) -> dict[str, Any]:
    """Parameters by part, their total and the added per cent: what a start prints."""
    parts = parameters_by_part(config)
    return {
        "parts": parts,
        "parameters": sum(parts.values()),
        "added_percent": added_percent(parts),
    }
