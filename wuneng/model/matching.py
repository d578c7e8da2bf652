"""Sizing an arm until it costs what the reference costs.

Parameters and FLOPs are matched by the width of the feed-forward layers. What a model keeps of a
sequence does not depend on that width: the size of attention's heads is matched first, and then
the parameters.
"""

from __future__ import annotations

import copy

from wuneng.built_in_arms import Match
from wuneng.model.cache_bytes import cache_bytes
from wuneng.model.configuration import WuNengConfig
from wuneng.model.counting import total_parameters, training_flops_per_token

__all__ = ["kept_bytes", "match"]

_KEPT_WITHIN = 0.05
"""Heads grow by whole rotary pairs: nearer is not always possible."""


def match(
    config: WuNengConfig, reference: WuNengConfig, kind: Match, sequence_length: int = 1024
) -> WuNengConfig:
    """``config`` changed until it costs what ``reference`` costs.

    Args:
        kind: ``parameters`` (within 1 %), ``flops`` (training FLOPs per token at
            ``sequence_length``, within 1 %), both by the feed-forward width; ``state_bytes`` (bytes
            of cache and state of one sequence of ``sequence_length`` tokens in float32, within 5 %,
            by the size of attention's heads, and then ``parameters``); or ``width`` (unchanged).

    Raises:
        ValueError: no such size exists.
    """
    if kind == "width":
        return config
    if kind == "state_bytes":
        kept = _keeping(config, reference, sequence_length)
        return _widened(kept, reference, "parameters", sequence_length)
    return _widened(config, reference, kind, sequence_length)


def kept_bytes(config: WuNengConfig, tokens: int) -> int:
    """Bytes of cache and state of one sequence of ``tokens`` tokens in float32."""
    return sum(cache_bytes(config, 1, tokens, 4).values())


def _keeping(config: WuNengConfig, reference: WuNengConfig, tokens: int) -> WuNengConfig:
    target, own = kept_bytes(reference, tokens), kept_bytes(config, tokens)
    if abs(own / target - 1) <= 0.001:
        return config
    head, keys = config.head_dim or 0, cache_bytes(config, 1, tokens, 4)["kv_bytes"]
    if not keys:
        raise ValueError(
            f"match: state_bytes changes the size of attention's heads, and this arm has none: it "
            f"keeps {own:,} bytes of {tokens} tokens, the first arm {target:,}"
        )
    pairs = round(head * (1 + (target - own) / keys) / 2)
    sizes = [2 * n for n in (pairs - 1, pairs, pairs + 1) if n > 0] or [2]
    tried = [_with_head(config, size) for size in sizes]
    best = min(tried, key=lambda one: abs(kept_bytes(one, tokens) - target))
    found = kept_bytes(best, tokens)
    if abs(found / target - 1) > _KEPT_WITHIN:
        raise ValueError(
            f"no size of attention's heads makes this arm keep the {target:,} bytes of {tokens} "
            f"tokens that the first arm keeps: {best.head_dim} is nearest, with {found:,}; choose "
            "other heads or match: parameters"
        )
    return best


def _with_head(config: WuNengConfig, size: int) -> WuNengConfig:
    changed = {"head_dim": size, "state_head_dim": config.state_head_dim}
    return WuNengConfig(**{**config.to_dict(), **changed})


def _widened(
    config: WuNengConfig, reference: WuNengConfig, kind: Match, sequence_length: int
) -> WuNengConfig:
    width = config.intermediate_size
    assert width is not None
    matrices = 3 if config.ffn == "swiglu" else 2
    per_unit = matrices * config.hidden_size * config.num_hidden_layers
    if config.mlp_bias and config.ffn != "rwkv7":
        per_unit += (matrices - 1) * config.num_hidden_layers

    def cost(c: WuNengConfig) -> float:
        if kind == "parameters":
            return float(total_parameters(c))
        return training_flops_per_token(c, sequence_length)

    target = cost(reference)
    unit_cost = float(per_unit) if kind == "parameters" else 6.0 * per_unit
    exact = width + (target - cost(config)) / unit_cost
    matched = copy.deepcopy(config)
    for multiple in (64, 8, 1):
        matched.intermediate_size = max(1, round(exact / multiple) * multiple)
        if abs(cost(matched) / target - 1) <= (0.01 if multiple == 1 else 0.001):
            return matched
    raise ValueError(
        f"no feed-forward width makes this arm match the reference by {kind}: it would have to be "
        f"{exact:.0f}; choose another size or match: width"
    )
