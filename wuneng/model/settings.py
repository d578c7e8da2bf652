"""From a recipe's model settings to a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wuneng.model.configuration import WuNengConfig

if TYPE_CHECKING:  # recipes need pydantic; models and operators run on machines without it
    from wuneng.recipe import ModelSettings

_NOT_IN_CONFIG = {"preset", "rope_theta", "rope_scaling", "vocab_size"}


def from_settings(
    settings: ModelSettings, vocab_size: int, **token_ids: int | None
) -> WuNengConfig:
    """The configuration that ``settings`` describe.

    Args:
        vocab_size: ids the tokenizer or task needs; ``settings.vocab_size`` may ask for more.
        token_ids: ``pad_token_id``, ``bos_token_id``, ``eos_token_id`` of the tokenizer.

    Raises:
        ValueError: ``settings.vocab_size`` is smaller than ``vocab_size``, or fields contradict.
    """
    if settings.vocab_size is not None and settings.vocab_size < vocab_size:
        raise ValueError(
            f"model.vocab_size is {settings.vocab_size}, but the data needs {vocab_size} token ids"
        )
    fields: dict[str, Any] = {
        name: value for name, value in settings.model_dump().items() if name not in _NOT_IN_CONFIG
    }
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": settings.rope_theta}
    rope.update(settings.rope_scaling or {})
    if settings.num_attention_heads == 0:
        fields["num_key_value_heads"] = 0
    return WuNengConfig(
        **fields,
        vocab_size=settings.vocab_size or vocab_size,
        rope_parameters=rope,
        **token_ids,
    )
