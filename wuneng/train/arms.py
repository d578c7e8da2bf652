"""From an arm of a recipe to its configuration, sized to match the reference arm."""

from __future__ import annotations

from collections.abc import Mapping

from wuneng.errors import RecipeError
from wuneng.model import WuNengConfig, from_settings
from wuneng.model.matching import match
from wuneng.model.skeleton import layout
from wuneng.recipe import ModelSettings
from wuneng.recipe.arms import Arm
from wuneng.train.starting_point import Sources, starting_config
from wuneng.train.verdicts import (
    ATTENTION,
    CONVOLVED_ATTENTION,
    HYBRID,
    SHIFTED_ATTENTION,
    STATE_ONLY,
)
from wuneng.train.vocabulary import Vocabulary

__all__ = ["ArmConfigs", "has_short_conv", "has_token_shift", "kind_of"]


class ArmConfigs:
    """Called with an arm's name: the configuration that it is trained with, found out once."""

    def __init__(
        self,
        arms: Mapping[str, Arm],
        sequence_length: int,
        vocabulary: Vocabulary,
        sources: Sources,
    ) -> None:
        """``arms``: complete, the reference first."""
        self._arms = arms
        self._length = sequence_length
        self._vocabulary = vocabulary
        self._sources = sources
        self._known: dict[str, WuNengConfig] = {}

    def __call__(self, arm: str) -> WuNengConfig:
        """The arm's configuration, ``match`` applied.

        Raises:
            RecipeError: the settings contradict each other, the data or the model that the arm
                starts from, or no feed-forward width makes the arm match the reference.
            ModelError: there is no usable model to start from.
        """
        if arm not in self._known:
            self._known[arm] = self._found(arm, self._arms[arm])
        return self._known[arm]

    def _found(self, name: str, arm: Arm) -> WuNengConfig:
        vocabulary = self._vocabulary
        if arm.init_from is not None:
            return starting_config(
                name,
                arm.init_from,
                arm.model,
                self._sources,
                vocab_size=vocabulary.size,
                sequence_length=self._length,
            )
        try:
            config = from_settings(arm.model, vocabulary.size, **vocabulary.special_ids)
            if arm.model.rope_scaling is not None:
                layout(config)  # rotary settings that cannot be computed with say so here
            reference = next(iter(self._arms))
            if name == reference or arm.match == "width":
                return config
            return match(config, self(reference), arm.match, self._length)
        except ValueError as error:
            raise RecipeError(f"arms.{name}: {error}") from error


def kind_of(settings: ModelSettings | WuNengConfig) -> str:
    """What an arm is, as results.json records it: the roles of a comparison go by it."""
    if settings.num_state_heads:
        return HYBRID if settings.num_attention_heads else STATE_ONLY
    if settings.attention_token_shift:
        return SHIFTED_ATTENTION
    return CONVOLVED_ATTENTION if settings.attention_short_conv else ATTENTION


def has_short_conv(settings: ModelSettings | WuNengConfig) -> bool:
    """Whether some of the arm's gain could be a short convolution's."""
    return bool(
        settings.attention_short_conv or (settings.num_state_heads and settings.state_short_conv)
    )


def has_token_shift(settings: ModelSettings | WuNengConfig) -> bool:
    """Whether some of the arm's gain could be the token shift's."""
    if not settings.num_state_heads:
        return bool(settings.attention_token_shift)
    mixed_in_heads = settings.token_shift == "pre" or (
        settings.token_shift == "post" and bool(settings.token_shift_on)
    )
    return bool(settings.attention_token_shift) or mixed_in_heads
