"""Which heads each layer has, from a list or a repeated pattern. Torch-free: recipes say it too."""

from __future__ import annotations

from typing import Any

from wuneng.errors import nearest

__all__ = ["LAYER_KINDS", "expand_layers"]

LAYER_KINDS = ("hybrid", "attention", "state")


def expand_layers(layers: list[str] | dict[str, Any], count: int) -> tuple[str, ...]:
    """One of :data:`LAYER_KINDS` for each of ``count`` layers.

    Args:
        layers: a kind for every layer, or ``{"pattern": [...]}`` to be repeated from the first
            layer on; the last repetition may be cut short.

    Raises:
        ValueError: neither of these, another number of layers, or another kind.
    """
    if isinstance(layers, dict):
        if set(layers) != {"pattern"}:
            raise ValueError(f"layers takes a list, or pattern alone, got {sorted(map(str, layers))}")
        pattern = layers["pattern"]
    else:
        pattern = layers
    if not isinstance(pattern, list | tuple) or not pattern:
        raise ValueError(f"layers must list {', '.join(LAYER_KINDS)}, got {pattern!r}")
    for kind in pattern:
        if kind not in LAYER_KINDS:
            close = nearest(str(kind), LAYER_KINDS)
            raise ValueError(
                f"layers must be {', '.join(LAYER_KINDS)} each, got {str(kind)[:40]!r}.{close}"
            )
    if not isinstance(layers, dict) and len(pattern) != count:
        raise ValueError(
            f"layers lists {len(pattern)} layers, but num_hidden_layers is {count}; write "
            "{pattern: [...]} to repeat them"
        )
    return tuple(pattern[i % len(pattern)] for i in range(count))
