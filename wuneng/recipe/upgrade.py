"""Starting from a model that exists: what is loaded, which of its weights train, from whom it
learns. The fields ``init_from``, ``train``, ``distill`` and ``lora`` of a recipe and its arms.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt
from pydantic import BeforeValidator, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from wuneng.errors import reason
from wuneng.recipe.settings import Settings
from wuneng.recipe.sizes import Real, Width

__all__ = ["Distillation", "LogitLoss", "LoraSettings", "Regex", "TrainChoice"]

_LONGEST_PATTERN = 1000
TRAIN_WORDS = ("all", "new", "none", "lora", "new+lora")
Name = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
NonNegativeReal = Annotated[Real, Ge(0.0)]
PositiveReal = Annotated[Real, Gt(0.0)]


def _regex(value: Any) -> Any:
    try:
        if len(value) > _LONGEST_PATTERN:
            raise ValueError(f"at most {_LONGEST_PATTERN} characters")
        re.compile(value)
    except (re.error, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise PydanticCustomError(
            "regex", "{expected}", {"expected": f"a regular expression ({reason(error)})"}
        ) from None
    return value


Regex = Annotated[str, BeforeValidator(_regex)]


def _train_choice(value: Any) -> Any:
    words = value in TRAIN_WORDS if isinstance(value, str) else False
    if not words and not (isinstance(value, list) and value):
        named = ", ".join(map(repr, TRAIN_WORDS))
        expected = f"{named} or a list of regular expressions"
        raise PydanticCustomError("train", "{expected}", {"expected": expected})
    return [_regex(pattern) for pattern in value] if isinstance(value, list) else value


#: Which parameters train: a word, or regular expressions searched for in their names.
TrainChoice = Annotated[str | list[str], BeforeValidator(_train_choice)]


class LogitLoss(Settings):
    """Learning from a teacher's logits on the same batches: loss = kl KL(teacher, arm) + ce CE."""

    kl: NonNegativeReal = 1.0
    """Weight of the divergence from the teacher's distribution."""
    ce: NonNegativeReal = 0.0
    """Weight of the ordinary cross-entropy on the text."""
    temperature: PositiveReal = 1.0
    """Both distributions are softened by it; the divergence is scaled by its square."""


class Distillation(LogitLoss):
    """Learning from a teacher's logits on the same batches: loss = kl KL(teacher, arm) + ce CE."""

    teacher: Name | None = None
    """A model directory or hub name; default what the arm starts from."""


class LoraSettings(Settings):
    """Low-rank adapters (peft) on the frozen weights of an arm: the control for new heads."""

    rank: Width | None = None
    """Rank of every adapter; either this or ``match``."""
    match: Name | None = None
    """An arm whose number of trainable parameters the adapters get: ranks are equal up to one."""
    match_in: Literal["parameters", "flops"] = "parameters"
    """``flops``: as many adapters as let the arm's training FLOPs per token agree with those of
    ``match`` instead."""
    targets: Annotated[list[Name], Field(min_length=1)] = Field(
        default_factory=lambda: [
            *("q_proj", "k_proj", "v_proj", "o_proj"),
            *("gate_proj", "up_proj", "down_proj"),
        ]
    )
    """Last names of the linear layers that get an adapter."""
    scale: PositiveReal = 2.0
    """LoRA's alpha divided by the rank."""

    @model_validator(mode="after")
    def _one_size(self) -> LoraSettings:
        if (self.rank is None) == (self.match is None):
            raise PydanticCustomError("lora", "{expected}", {"expected": "either rank or match"})
        if self.match is None and self.match_in != "parameters":
            expected = {"expected": "match_in beside match alone: rank says how many there are"}
            raise PydanticCustomError("lora", "{expected}", expected)
        return self
