"""The arms of a comparison: what each changes, the built-in ones, and how changes are applied.

An arm is a model configuration trained on the same tokens in the same order. The first arm of a
recipe is the reference that the others' ``match`` aims at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from wuneng.head_counts import replaced_heads
from wuneng.recipe.model import PAPER_WIRING, ModelSettings
from wuneng.recipe.settings import Settings
from wuneng.recipe.training import OptimizerSettings
from wuneng.recipe.upgrade import Distillation, LoraSettings, Name, TrainChoice

__all__ = [
    "BUILT_IN_ARMS",
    "DEFAULT_ARMS",
    "Arm",
    "BuiltInArm",
    "built_in",
    "resolve_model",
]

Match = Literal["width", "parameters", "flops"]


class Arm(Settings):
    """One arm. In a loaded recipe ``model`` and ``training`` are complete, not just the changes."""

    model: ModelSettings = ModelSettings()
    """Fields of ``model:`` that this arm changes."""
    match: Match = "width"
    """Widen the feed-forward layer until total parameters, or training FLOPs per token, agree with
    the first arm's; ``width`` leaves it alone."""
    training: OptimizerSettings = OptimizerSettings()
    """Optimiser fields of ``training:`` that this arm changes."""
    init_from: Name | None = None
    """The model that this arm starts from, in place of the recipe's."""
    train: TrainChoice = "all"
    """Which parameters of this arm train, in place of the recipe's choice."""
    distill: Distillation | None = None
    """From whom this arm learns, in place of the recipe's choice; null: from the text alone."""
    lora: LoraSettings | None = None
    """Low-rank adapters, for an arm that starts from a model; they are all that trains."""


def _pure_state(base: ModelSettings) -> dict[str, Any]:
    """RWKV-7's own time mix: state heads alone, as many as fill the width."""
    size = base.state_head_size
    return {
        "num_attention_heads": 0,
        "num_key_value_heads": None,
        "head_dim": None,
        "num_state_heads": max(1, base.hidden_size // size),
        "state_head_dim": size,
        "state_layers": None,
        "state_key_source": "own",
        "state_value_source": "own",
        "token_shift": "pre",
        "state_output_gate": True,
        "state_value_residual": True,
        "cross_head": "none",
    }


def _replacing(base: ModelSettings) -> dict[str, Any]:
    """State heads take the place of attention heads; key/value heads shrink to a divisor."""
    states, heads = replaced_heads(base.num_attention_heads, base.num_state_heads)
    groups = base.num_key_value_heads
    if groups is not None and heads > 0:
        groups = max(g for g in range(1, min(groups, heads) + 1) if heads % g == 0)
    return {
        "num_attention_heads": heads,
        "num_state_heads": states,
        "num_key_value_heads": groups,
        "head_dim": base.attention_head_size,
    }


def _plain(base: ModelSettings) -> dict[str, Any]:
    return {"num_state_heads": 0, "cross_head": "none", "snapshots": 0}


def _changing(**changes: Any) -> Callable[[ModelSettings], dict[str, Any]]:
    return lambda base: dict(changes)


class BuiltInArm(NamedTuple):
    """An arm that a recipe may name without saying what it changes."""

    match: Match
    changes: Callable[[ModelSettings], dict[str, Any]]


BUILT_IN_ARMS: dict[str, BuiltInArm] = {
    "wuneng": BuiltInArm("width", _changing()),
    "mha": BuiltInArm("parameters", _plain),
    "mha-shift": BuiltInArm(
        "parameters", lambda base: {**_plain(base), "attention_token_shift": True}
    ),
    "rwkv7": BuiltInArm("parameters", _pure_state),
    "replace": BuiltInArm("width", _replacing),
    "no-shift": BuiltInArm("width", _changing(token_shift="none")),
    "no-snapshots": BuiltInArm("width", _changing(snapshots=0)),
    "no-middle": BuiltInArm("width", _changing(cross_head="none")),
    "concat": BuiltInArm("width", _changing(cross_head="concat")),
    "additive": BuiltInArm("width", _changing(cross_head="additive")),
    "gated": BuiltInArm("width", _changing(cross_head="gated")),
}


#: What is compared when a recipe does not say: the control shows what the token shift alone wins.
DEFAULT_ARMS = ("wuneng", "mha", "mha-shift")


def built_in(name: str, base: ModelSettings) -> dict[str, Any]:
    """What the built-in arm ``name`` changes of ``base``; nothing for any other name."""
    return BUILT_IN_ARMS[name].changes(base) if name in BUILT_IN_ARMS else {}


def resolve_model(base: dict[str, Any], changes: dict[str, Any]) -> ModelSettings:
    """``base`` with ``changes``, both as the fields that were set, with every rule applied.

    The preset fills only fields that neither sets. Middle heads need both kinds of heads: an arm
    that removes one kind without mentioning ``cross_head`` has no middle heads.
    """
    chosen = {**base, **changes}
    if chosen.get("preset") == "paper":
        chosen = {**PAPER_WIRING, **chosen}
    settings = ModelSettings.model_validate(chosen)
    one_kind = 0 in (settings.num_attention_heads, settings.num_state_heads)
    meant = "cross_head" in changes or ("cross_head" in base and not _changes_heads(changes))
    if one_kind and not meant:
        settings = ModelSettings.model_validate({**chosen, "cross_head": "none"})
    return settings


def _changes_heads(changes: dict[str, Any]) -> bool:
    return "num_attention_heads" in changes or "num_state_heads" in changes
