"""Which heads each layer has, from a list or a repeated pattern. Torch-free: recipes say it too."""

from __future__ import annotations

from typing import Any

from wuneng.errors import nearest

__all__ = ["LAYER_KINDS", "expand_layers", "layer_problem", "shape_problem"]

LAYER_KINDS = ("hybrid", "attention", "state")


def expand_layers(layers: list[str] | dict[str, Any], count: int) -> tuple[str, ...]:
    """One of :data:`LAYER_KINDS` for each of ``count`` layers.

    Args:
        layers: a kind for every layer, or ``{"pattern": [...]}`` to be repeated from the first
            layer on; the last repetition may be cut short. :func:`layer_problem` has checked it.
    """
    pattern = layers["pattern"] if isinstance(layers, dict) else layers
    return tuple(pattern[i % len(pattern)] for i in range(count))


def layer_problem(layers: Any, count: int, *, attention_heads: int, state_heads: int) -> str | None:
    """What is wrong with the ``layers`` of a model of ``count`` layers, to follow the field's name.

    None if nothing is. ``layers`` None is no pattern: every layer has all the heads that there are.
    """
    if layers is None:
        return None
    if wrong := shape_problem(layers):
        return wrong
    if not isinstance(layers, dict) and len(layers) != count:
        return (
            f"must be one for each of num_hidden_layers ({count}), got {len(layers)}; "
            "{pattern: [...]} repeats them"
        )
    kinds = set(expand_layers(layers, count))
    for needed, heads in (("attention", attention_heads), ("state", state_heads)):
        if bool(kinds & {needed, "hybrid"}) != bool(heads):
            some = "no layer" if heads else "a layer"
            return f"must agree with num_{needed}_heads ({heads}), got {some} with {needed} heads"
    return None


def shape_problem(layers: Any) -> str | None:
    """What is wrong with ``layers`` of whatever model."""
    pattern = layers
    if isinstance(layers, dict):
        if set(layers) != {"pattern"}:
            return f"must be a list, or pattern alone, got {sorted(map(str, layers))}"
        pattern = layers["pattern"]
    if not isinstance(pattern, list | tuple) or not pattern:
        return f"must list {', '.join(LAYER_KINDS)}, got {str(pattern)[:40]!r}"
    for kind in pattern:
        if kind not in LAYER_KINDS:
            close = nearest(str(kind), LAYER_KINDS)
            return f"must be {', '.join(LAYER_KINDS)} each, got {str(kind)[:40]!r}.{close}"
    return None
