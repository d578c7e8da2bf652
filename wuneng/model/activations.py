"""What autograd keeps of a training step's forward pass, counted: numbers per token and layer.

Each count is of the tensors that a layer's operations save for their gradients, which depends on
what trains: a frozen matrix needs no input of its own, only what is to pass its gradient on.

Legend: D model width, F feed-forward width, H query heads, G key/value heads, S state heads, N head
size.
"""

from __future__ import annotations

from dataclasses import dataclass

from wuneng.model.configuration import WuNengConfig

__all__ = ["Trains", "backward_numbers", "kept_by_branch", "kept_by_layer"]

#: Tokens between two states that the recurrence keeps on its way.
_STATE_EVERY = 32


@dataclass(frozen=True)
class Trains:
    """What of a layer trains."""

    base: bool
    """Its own matrices and norms."""
    adapters: int = 0
    """Sum of the ranks of LoRA adapters on its matrices."""
    branch: bool = False
    """State and middle heads."""
    donor: bool = False
    """These, read from another row's state, which takes a recurrence of its own."""


def kept_by_layer(config: WuNengConfig, layer: int, trains: Trains, *, first: bool) -> float:
    """Numbers per token that ``layer`` keeps.

    Args:
        first: no parameter before this layer trains, so its input needs no gradient.
    """
    D, F = config.hidden_size, config.intermediate_size or 0
    reads_input = trains.base or trains.adapters > 0
    passes = not first or reads_input  # a gradient goes through attention
    # Norms: what comes in, and what the weight is multiplied with where that trains.
    norms = (2 if passes else 1) * (D + 1) + (2 * D if trains.base else 0)
    if config.norm_placement == "both":
        norms += 2 * (D + 1) + (2 * D if trains.base else 0)
    wide = 3 if config.ffn == "swiglu" else 1
    if config.has_experts(layer):  # each chosen expert has an input and an output of its own
        F = config.num_experts_per_tok * ((config.moe_intermediate_size or 0) + D)
    feed_forward = (wide + reads_input) * F + (D if reads_input else 0)
    attention = 0.0
    if config.has_attention(layer):
        heads, N = config.num_attention_heads, config.head_dim or 0
        groups = config.num_key_value_heads or heads
        if passes:
            attention = (2 * heads + 2 * groups) * N + heads
        if config.qk_norm and passes:
            attention += (heads + groups) * (N * (2 if trains.base else 1) + 1)
        if config.attention_token_shift and passes:
            attention += (3 if trains.base else 2) * groups * N
    # The normalised input, of which projections make their gradients.
    attention += D if reads_input or trains.branch else 0
    branch = 0.0
    if config.has_state(layer) and trains.branch:
        branch = kept_by_branch(config, layer, donor=trains.donor)
    return norms + feed_forward + attention + branch + trains.adapters


def kept_by_branch(config: WuNengConfig, layer: int, *, donor: bool = False) -> float:
    """Numbers per token that state and middle heads keep, their shared input aside; with ``donor``
    as measured, another row's state read beside the own one."""
    S, N = config.num_state_heads, config.state_head_dim or 0
    groups = (config.num_key_value_heads or 0) * (config.head_dim or 0)
    width = S * N
    numbers = 5.0 * width  # read vector, decay, rate, what is read before and after its norm
    own_key = config.state_source("key", layer) == "own"
    numbers += width if own_key else min(width, groups)
    shared = config.state_source("value", layer) == "attention" and groups == S * N
    numbers += 0 if shared else width
    numbers += (config.decay_rank or 0) + (config.rate_rank or 0)
    if config.state_output_gate:
        numbers += width + (config.gate_rank or 0)
    if donor:
        numbers += (11 if config.state_output_gate else 10) * width
    numbers += S * N * N / _STATE_EVERY
    if config.cross_head != "none" and config.has_attention(layer):
        numbers += 6 * width  # the groups' mean and norm, what is mixed, their concatenation
    return numbers


def backward_numbers(config: WuNengConfig) -> float:
    """Numbers per token that are at work, and not kept, while a layer's gradients are made."""
    F = config.intermediate_size or 0
    return 3.0 * F + 2 * config.hidden_size
