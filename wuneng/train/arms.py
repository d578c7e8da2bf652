"""From an arm of a recipe to its configuration, sized to match the reference arm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wuneng.errors import RecipeError
from wuneng.model import WuNengConfig, from_settings
from wuneng.model.counting import match
from wuneng.recipe import ModelSettings, Recipe
from wuneng.train.verdicts import ATTENTION, HYBRID, SHIFTED_ATTENTION, STATE_ONLY

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["arm_config", "has_token_shift", "kind_of"]


def arm_config(
    recipe: Recipe,
    arm: str,
    vocab_size: int,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> WuNengConfig:
    """The configuration that ``arm`` is trained with, ``match`` applied.

    Raises:
        RecipeError: the settings contradict each other or the data, or no feed-forward width makes
            the arm match the reference.
    """
    ids = {
        name: getattr(tokenizer, name, None)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id")
    }
    try:
        config = from_settings(recipe.arm_model(arm), vocab_size, **ids)
        if arm == recipe.reference_arm:
            return config
        reference = from_settings(recipe.arm_model(recipe.reference_arm), vocab_size, **ids)
        length = recipe.training.sequence_length
        return match(config, reference, recipe.arms[arm].match, length)
    except ValueError as error:
        raise RecipeError(f"arms.{arm}: {error}") from error


def kind_of(settings: ModelSettings) -> str:
    """What an arm is, as results.json records it: the roles of a comparison go by it."""
    if settings.num_state_heads:
        return HYBRID if settings.num_attention_heads else STATE_ONLY
    return SHIFTED_ATTENTION if settings.attention_token_shift else ATTENTION


def has_token_shift(settings: ModelSettings) -> bool:
    """Whether some of the arm's gain could be the token shift's."""
    if not settings.num_state_heads:
        return settings.attention_token_shift
    return settings.attention_token_shift or (
        settings.token_shift == "pre"
        or (settings.token_shift == "post" and bool(settings.token_shift_on))
    )
