"""From an arm of a recipe to its configuration, sized to match the reference arm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wuneng.errors import RecipeError
from wuneng.model import WuNengConfig, from_settings
from wuneng.model.counting import match
from wuneng.model.skeleton import layout
from wuneng.recipe import ModelSettings, Recipe
from wuneng.train.distillation import teacher_config
from wuneng.train.starting_point import OwnModels, Sources, starting_config
from wuneng.train.verdicts import ATTENTION, HYBRID, SHIFTED_ATTENTION, STATE_ONLY

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["ArmConfigs", "arm_config", "has_token_shift", "kind_of"]


class ArmConfigs:
    """Called with an arm's name: its configuration, found out once."""

    def __init__(
        self,
        recipe: Recipe,
        vocab_size: int,
        tokenizer: PreTrainedTokenizerFast | None = None,
        sources: Sources | None = None,
    ) -> None:
        """Arguments as of ``arm_config``."""
        self.recipe = recipe
        self.sources = sources or OwnModels()
        self._rest = (vocab_size, tokenizer, self.sources)
        self._known: dict[str, WuNengConfig] = {}

    def __call__(self, arm: str) -> WuNengConfig:
        """``arm_config(arm)``, with its errors."""
        if arm not in self._known:
            self._known[arm] = arm_config(self.recipe, arm, *self._rest)
        return self._known[arm]

    def teacher(self, arm: str) -> WuNengConfig | None:
        """The configuration of the arm's teacher, if it has one; errors of ``teacher_config``."""
        return teacher_config(self.recipe, arm, self(arm), self.sources)


def arm_config(
    recipe: Recipe,
    arm: str,
    vocab_size: int,
    tokenizer: PreTrainedTokenizerFast | None = None,
    sources: Sources | None = None,
) -> WuNengConfig:
    """The configuration that ``arm`` is trained with, ``match`` applied.

    Args:
        sources: finds what arms start from; by default only models that are WuNeng already.

    Raises:
        RecipeError: the settings contradict each other, the data or the model that the arm starts
            from, or no feed-forward width makes the arm match the reference.
        ModelError: there is no usable model to start from.
    """
    if recipe.arms[arm].init_from is not None:
        return starting_config(recipe, arm, vocab_size, sources)
    ids = {
        name: getattr(tokenizer, name, None)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id")
    }
    try:
        config = from_settings(recipe.arm_model(arm), vocab_size, **ids)
        if recipe.arm_model(arm).rope_scaling is not None:
            layout(config)  # rotary settings that cannot be computed with say so here
        if arm == recipe.reference_arm or recipe.arms[arm].match == "width":
            return config
        reference = arm_config(recipe, recipe.reference_arm, vocab_size, tokenizer, sources)
        length = recipe.training.sequence_length
        return match(config, reference, recipe.arms[arm].match, length)
    except ValueError as error:
        raise RecipeError(f"arms.{arm}: {error}") from error


def kind_of(settings: ModelSettings | WuNengConfig) -> str:
    """What an arm is, as results.json records it: the roles of a comparison go by it."""
    if settings.num_state_heads:
        return HYBRID if settings.num_attention_heads else STATE_ONLY
    return SHIFTED_ATTENTION if settings.attention_token_shift else ATTENTION


def has_token_shift(settings: ModelSettings | WuNengConfig) -> bool:
    """Whether some of the arm's gain could be the token shift's."""
    if not settings.num_state_heads:
        return settings.attention_token_shift
    return settings.attention_token_shift or (
        settings.token_shift == "pre"
        or (settings.token_shift == "post" and bool(settings.token_shift_on))
    )
