"""The rungs of a study's ladder: the recipe at each size, for each length of training.

The first arm is aimed at. Its width grows in whole heads and its depth with its width, so that
their ratio stays the recipe's; what is then missing or too much, the feed-forward layer makes up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wuneng.errors import RecipeError
from wuneng.recipe import ModelSettings, Recipe, WrittenRecipe
from wuneng.train.plan import plan_run
from wuneng.train.starting_point import Sources

__all__ = ["Rung", "aimed_arms", "matched_arms", "rungs_of"]

_STEP = 8
"""Channels in which the feed-forward layer is made wider."""
_MOST_HEADS = 4096


@dataclass(frozen=True)
class Rung:
    """One size and one length of training."""

    name: str
    """Names its directories, as ``1M-x8``."""
    changes: Mapping[str, Any]
    """What it changes of the recipe, by the path of the field."""
    size: int | None = None
    """Parameters that were aimed at."""
    tokens_per_parameter: float | None = None
    widths: Mapping[str, Mapping[str, float]] | None = None
    """Of the arms' feed-forward layers, where they were measured (``match: time``)."""


def rungs_of(written: WrittenRecipe, sources: Sources | None = None) -> list[Rung]:
    """The rungs from the smallest on; one that changes nothing where there is no ladder.

    Raises:
        RecipeError: the first arm cannot be made so small or so large.
    """
    study = written.recipe.study
    assert study is not None
    if study.ladder is None:
        return [Rung("all", {})]
    rungs = []
    for size in sorted(study.ladder.sizes):
        changes, parameters = _sized(written, size, sources)
        for ratio in sorted(study.ladder.tokens_per_parameter):
            length = _length(written.recipe, round(ratio * parameters))
            name = f"{_short(size)}-x{ratio:g}"
            rungs.append(Rung(name, {**changes, **length}, size, ratio))
    names = [rung.name for rung in rungs]
    if len(set(names)) < len(names):
        raise RecipeError("study.ladder: expected sizes and lengths that differ")
    return rungs


def aimed_arms(written: WrittenRecipe) -> list[str]:
    """The arms that ``study.match`` aims at the first: those that do not state their own ``match``,
    and do not have the sizes of what they start from."""
    recipe, stated = written.recipe, written.source.data["arms"]
    return [
        name
        for name, arm in recipe.arms.items()
        if name != recipe.reference_arm
        and "match" not in (stated.get(name) or {})
        and arm.init_from is None
    ]


def matched_arms(written: WrittenRecipe) -> dict[str, Any]:
    """``match`` of every arm that is aimed; by parameters until times are measured."""
    study = written.recipe.study
    assert study is not None
    match = "parameters" if study.match == "time" else study.match
    return {f"arms.{name}.match": match for name in aimed_arms(written)}


def _length(recipe: Recipe, tokens: int) -> dict[str, Any]:
    """Steps for so many tokens; the warm-up keeps its share of them."""
    training = recipe.training
    steps = max(1, math.ceil(tokens / training.tokens_per_step))
    warmup = round(training.warmup_steps * steps / training.total_steps)
    return {
        "training.tokens": None,
        "training.steps": steps,
        "training.warmup_steps": min(warmup, steps - 1),
    }


def _sized(
    written: WrittenRecipe, size: int, sources: Sources | None
) -> tuple[dict[str, Any], int]:
    """The fields that give the first arm about ``size`` parameters, and how many it has then."""
    below: tuple[dict[str, Any], int] | None = None
    unfit: RecipeError | None = None
    for heads in range(1, _MOST_HEADS):
        changes = _widened(written.recipe.model, heads)
        if changes is None:
            continue
        try:
            found = (changes, _parameters(written, changes, sources))
        except RecipeError as error:  # too small for one of the arms
            unfit = error
            continue
        if found[1] >= size:
            near = [one for one in (below, found) if one is not None]
            best = min(near, key=lambda one: abs(math.log(one[1] / size)))
            return _filled(written, best[0], size, sources)
        below = found
    raise unfit or RecipeError(
        f"study.ladder.sizes: {size:,} parameters are beyond what a model here has"
    )


def _widened(model: ModelSettings, heads: int) -> dict[str, Any] | None:
    """The model at so many times the width of a head; None where its kinds of heads do not fit."""
    head = model.attention_head_size
    width = heads * head
    ratio = width / model.hidden_size
    attention = round(model.num_attention_heads * ratio)
    state = round(model.num_state_heads * ratio)
    lost = (model.num_attention_heads and not attention) or (model.num_state_heads and not state)
    uneven = attention and state and attention % state and state % attention
    if lost or uneven:
        return None
    changes: dict[str, Any] = {
        "model.hidden_size": width,
        "model.head_dim": head,
        "model.num_hidden_layers": max(1, round(model.num_hidden_layers * ratio)),
        "model.num_attention_heads": attention,
        "model.num_state_heads": state,
    }
    if model.num_key_value_heads is not None and attention:
        wanted = model.num_key_value_heads * attention / model.num_attention_heads
        divisors = [n for n in range(1, attention + 1) if attention % n == 0]
        changes["model.num_key_value_heads"] = min(divisors, key=lambda n: abs(n - wanted))
    if model.intermediate_size is not None:
        changes["model.intermediate_size"] = max(_STEP, round(model.intermediate_size * ratio))
    return changes


def _filled(
    written: WrittenRecipe, changes: dict[str, Any], size: int, sources: Sources | None
) -> tuple[dict[str, Any], int]:
    """``changes`` with the feed-forward width that comes nearest to ``size`` parameters."""
    width = changes["model.hidden_size"]
    counts = [
        _parameters(written, {**changes, "model.intermediate_size": units}, sources)
        for units in (width, 2 * width)
    ]
    per_unit = (counts[1] - counts[0]) / width
    units = width + (size - counts[0]) / per_unit
    units = min(max(round(units / _STEP) * _STEP, width), 8 * width)
    filled = {**changes, "model.intermediate_size": units}
    return filled, _parameters(written, filled, sources)


def _parameters(written: WrittenRecipe, changes: dict[str, Any], sources: Sources | None) -> int:
    recipe = written.variant(changes, why="study.ladder")
    first = recipe.reference_arm
    return plan_run(recipe, sources, arms={first}, text="none").arms[first].facts.parameters


def _short(size: int) -> str:
    return f"{size / 2**20:.3g}M" if size >= 100_000 else f"{size / 2**10:.3g}k"
