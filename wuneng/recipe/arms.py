"""The arms of a comparison: what each changes, the built-in ones, and how changes are applied.

An arm is a model configuration trained on the same tokens in the same order. The first arm of a
recipe is the reference that the others' ``match`` aims at.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from wuneng.built_in_arms import BUILT_IN_ARMS, DEFAULT_ARMS, BuiltInArm, Match
from wuneng.recipe.model import LEFT_OPEN, PAPER_WIRING, ModelSettings
from wuneng.recipe.settings import Settings
from wuneng.recipe.sizes import Fraction
from wuneng.recipe.stages import Stage
from wuneng.recipe.training import OptimizerSettings
from wuneng.recipe.upgrade import Distillation, LoraSettings, Name, TrainChoice

#: What heads in attention's place have, where their arm does not say otherwise.
REPLACING: dict[str, Any] = {
    "state_key_source": "own",
    "state_value_source": "own",
    "cross_head": "none",
}

__all__ = [
    "BUILT_IN_ARMS",
    "DEFAULT_ARMS",
    "REPLACING",
    "Arm",
    "BuiltInArm",
    "built_in",
    "resolve_model",
]


class Arm(Settings):
    """One arm. In a loaded recipe ``model`` and ``training`` are complete, not just the changes."""

    model: ModelSettings = ModelSettings()
    """Fields of ``model:`` that this arm changes."""
    match: Match = "width"
    """Widen the feed-forward layer until total parameters, or training FLOPs per token, agree with
    the first arm's; ``state_bytes``: attention's heads grow until as many bytes of a sequence of
    ``training.sequence_length`` tokens are kept, then parameters agree; ``width``: unchanged."""
    training: OptimizerSettings = OptimizerSettings()
    """Optimiser fields of ``training:`` that this arm changes."""
    init_from: Name | None = None
    """The model that this arm starts from, in place of the recipe's."""
    train: TrainChoice = "all"
    """Which parameters of this arm train, in place of the recipe's choice."""
    distill: Distillation | None = None
    """From whom this arm learns, in place of the recipe's choice; null: from the text alone."""
    stages: list[Stage] | None = None
    """Through which stages this arm goes, in place of the recipe's; null: none."""
    replace: Annotated[Fraction, Field(gt=0.0)] | None = None
    """Share of the layers, of an arm that starts from a model, in which state heads stand in
    attention's place; its attention is not saved, and its keys and values leave the cache. Heads as
    many and as large as attention's start from its weights."""
    replace_of: Literal["layers", "heads"] = "layers"
    """``heads``: ``replace`` is a share of the attention heads of every layer, in whole groups that
    have keys and values in common: the last ones go, and the cache holds as many fewer."""
    state: Literal["keep", "zero", "permute", "donor"] = "keep"
    """A control arm: trained and scored as ``wuneng eval --state`` scores, with the state's readout
    silenced, another row's readout, or its own question put to another row's state. What is saved
    is an ordinary model, to be scored with the same ``--state``."""
    lora: LoraSettings | None = None
    """Low-rank adapters, for an arm that starts from a model; with ``train: new`` they are all that
    trains, with ``new+lora`` new heads train beside them."""


def built_in(name: str, base: ModelSettings) -> dict[str, Any]:
    """What the built-in arm ``name`` changes of ``base``; nothing for any other name."""
    return BUILT_IN_ARMS[name].changes(base) if name in BUILT_IN_ARMS else {}


def resolve_model(
    base: dict[str, Any], changes: dict[str, Any], *, loaded: bool = False
) -> ModelSettings:
    """``base`` with ``changes``, both as the fields that were set, with every rule applied.

    The preset fills only fields that neither sets. Middle heads need both kinds of heads: an arm
    that removes one kind without mentioning ``cross_head`` has no middle heads. ``loaded``: the
    arm's model is somebody's, which decides what is left open.
    """
    chosen = {
        name: value
        for name, value in {**base, **changes}.items()
        if value is not None or name not in LEFT_OPEN
    }
    if chosen.get("preset") == "paper":
        chosen = {**PAPER_WIRING, **chosen}
    settings = ModelSettings.model_validate(chosen)
    one_kind = 0 in (settings.num_attention_heads, settings.num_state_heads)
    meant = "cross_head" in changes or ("cross_head" in base and not _changes_heads(changes))
    if one_kind and not meant:
        settings = ModelSettings.model_validate({**chosen, "cross_head": "none"})
    return settings if loaded else settings.settled()


def _changes_heads(changes: dict[str, Any]) -> bool:
    return "num_attention_heads" in changes or "num_state_heads" in changes
