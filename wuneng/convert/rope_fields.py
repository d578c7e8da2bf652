"""Rotary positions of a stock configuration to WuNeng's fields and back.

One set for all layers, or one for layers with a window and one for the others, or none in some.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from wuneng.convert.families import Family
from wuneng.errors import ModelError, nearest

__all__ = ["rope_fields", "rope_that_does_not_fit", "stock_rope"]

_FULL, _SLIDING = "full_attention", "sliding_attention"


def rope_fields(source: Any, family: Family, slides: bool, where: str) -> dict[str, Any]:
    """WuNeng's fields for the positions of the stock configuration ``source``.

    Args:
        slides: whether some layer has a sliding window.

    Raises:
        ModelError: a kind of rotary positions that WuNeng does not have, or no usable one.
    """
    rope: Any = source.rope_parameters
    fields: dict[str, Any] = {}
    if family.rope == "by_type":
        rope = rope if isinstance(rope, Mapping) else {}
        of_window = rope.get(_SLIDING)
        rope = rope.get(_FULL)
        if slides and of_window != rope:
            _check(of_window, where)
            fields["sliding_rope_parameters"] = dict(of_window)
    _check(rope, where)
    if family.longrope_recompute and rope.get("rope_type") == "longrope":
        fields["longrope_recompute"] = True
    if family.has_no_rope_layers:
        fields["rope_layers"] = _layers_with_rope(source, where)
    return {"rope_parameters": dict(rope), **fields}


def _layers_with_rope(source: Any, where: str) -> list[int] | None:
    has = source.no_rope_layers  # 1 where a layer has rotary positions, whatever its name says
    if not isinstance(has, list) or len(has) != source.num_hidden_layers:
        raise ModelError(
            f"{where}: no_rope_layers must be a list of {source.num_hidden_layers} of 0 and 1, one "
            f"for each layer, got {has!r}"
        )
    return None if all(has) else [layer for layer, one in enumerate(has) if one]


def _check(rope: Any, where: str) -> None:
    if not isinstance(rope, Mapping) or any(isinstance(value, Mapping) for value in rope.values()):
        raise ModelError(f"{where}: rope_parameters must be one set for all layers, got {rope!r}")
    kind = rope.get("rope_type", "default")
    known = {"default", *ROPE_INIT_FUNCTIONS} - {"proportional"}
    if kind not in known:
        raise ModelError(
            f"{where}: rope_type {kind!r} is not supported; expected one of "
            f"{', '.join(sorted(known))}.{nearest(str(kind), known)}"
        )


def rope_that_does_not_fit(config: Any, family: Family) -> str:
    """Why the family's layers have not the positions of ``config``; empty where they have."""
    if config.rope_layers is not None and not family.has_no_rope_layers:
        return "has rotary positions in every layer"
    if config.sliding_rope_parameters is not None and family.rope != "by_type":
        return "has one set of rotary positions for all layers"
    rope = config.rope_parameters or {}
    if rope.get("partial_rotary_factor", 1.0) != 1.0 and not family.partial_rotary:
        return "turns whole heads"
    recomputes = family.longrope_recompute and rope.get("rope_type") == "longrope"
    if config.longrope_recompute != recomputes:
        return "does otherwise where longrope's factors change"
    return ""


def stock_rope(config: Any, family: Family) -> dict[str, Any]:
    """The fields of a stock configuration of ``family`` for the positions of ``config``."""
    rope = config.rope_parameters
    if family.rope == "by_type":
        of_window = config.sliding_rope_parameters or rope
        return {"rope_parameters": {_FULL: dict(rope), _SLIDING: dict(of_window)}}
    fields: dict[str, Any] = {"rope_parameters": rope}
    if family.has_no_rope_layers:
        layers = range(config.num_hidden_layers)
        fields["no_rope_layers"] = [int(config.has_rope(layer)) for layer in layers]
    if family.longrope_recompute and "original_max_position_embeddings" in rope:
        name = "original_max_position_embeddings"
        fields[name] = rope[name]
    return fields
