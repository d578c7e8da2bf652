"""The stages of an upgrade: what an arm that starts from a model learns from, one after another.

    stages:
    - align: {steps: 100}             each layer's new heads learn what attention does there
    - distill: {steps: 200}           the whole model learns the logits of what it started from
    - tune: {train: new+lora}         cross-entropy on the text

The teacher of the first two is the model itself with its branch silent, so the weights that it
started from stay frozen until a tune stage trains them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from wuneng.recipe.settings import Settings
from wuneng.recipe.sizes import Count, PositiveCount, Real
from wuneng.recipe.upgrade import LogitLoss, TrainChoice

__all__ = ["AlignStage", "DistillStage", "Stage", "StageSettings", "TuneStage", "stage_problems"]

_ONE_OF = "one of 'align', 'distill' and 'tune'"
#: ``train`` of stages that leave what the model started from as it was.
FROZEN_BASE = ("new", "lora", "new+lora")


class StageSettings(Settings):
    """What every stage may have for itself; all else is as ``training:`` says."""

    steps: PositiveCount | None = None
    """Optimiser steps, of ``training``'s; one stage may leave them out and takes what is left."""
    learning_rate: Annotated[Real, Field(gt=0.0)] | None = None
    """Peak learning rate; default the arm's. The schedule runs from start to end of each stage."""
    warmup_steps: Count | None = None
    """Default the same share of the stage as ``training.warmup_steps`` is of the run."""


class AlignStage(StageSettings):
    """Every layer's new heads learn to predict, from the input of their layer, what is asked of
    them: the loss is the relative squared error, 1 for heads that are silent. Where attention is
    not replaced, their output projection is zero again at the end: the logits are the source's."""

    target: Literal["attention", "hidden"] = "attention"
    """What attention adds to the residual stream in that layer, or what the whole layer does."""
    layers: Literal["together", "in_turn"] = "together"
    """All layers at every step, or one after the other, each for its share of the steps: gradients
    and moments are then held for one layer."""


class DistillStage(StageSettings, LogitLoss):
    """The logits are learnt from the same weights with the branch silent: no second model."""

    ce: Annotated[Real, Field(ge=0.0)] = 1.0
    """Weight of the ordinary cross-entropy on the text. Where attention is not replaced, a silent
    branch is its teacher already, and learns nothing without it."""
    teacher_top_k: PositiveCount | None = None
    """Ask the teacher once for each row and keep its k likeliest tokens, with the mass of all
    others as one more, in the cache (``data.cache_dir``): for further epochs, seeds and arms. The
    divergence is between these k + 1. Default: the teacher is asked at every step, for all."""
    train: Literal["new", "new+lora"] = "new"
    """State and middle heads, or with them the arm's LoRA adapters."""


class TuneStage(StageSettings):
    """Cross-entropy on the text."""

    train: TrainChoice | None = None
    """Default the arm's own ``train``."""


class Stage(Settings):
    """One stage: exactly one of the three."""

    align: AlignStage | None = None
    """Layer by layer, from the model's own activations."""
    distill: DistillStage | None = None
    """From the model's own logits."""
    tune: TuneStage | None = None
    """From the text."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        """``align`` alone, or ``{align: null}``, has every default."""
        if isinstance(value, str) and value in cls.model_fields:
            return {value: {}}
        if isinstance(value, str):
            raise PydanticCustomError("stage", "{expected}", {"expected": _ONE_OF})
        if isinstance(value, dict) and len(value) == 1:
            return {key: {} if inner is None else inner for key, inner in value.items()}
        return value

    @model_validator(mode="after")
    def _one(self) -> Stage:
        if sum(value is not None for value in (self.align, self.distill, self.tune)) != 1:
            raise PydanticCustomError("stage", "{expected}", {"expected": _ONE_OF})
        return self

    @property
    def kind(self) -> str:
        """``align``, ``distill`` or ``tune``."""
        return "align" if self.align else "distill" if self.distill else "tune"

    @property
    def settings(self) -> AlignStage | DistillStage | TuneStage:
        """Those of the one that is given."""
        found = self.align or self.distill or self.tune
        assert found is not None
        return found


def stage_problems(
    stages: Sequence[Stage], total_steps: int, *, train: str | list[str], has_lora: bool
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """What contradicts itself in an arm's ``stages``; paths start below it.

    Args:
        total_steps: of the whole run.
        train, has_lora: the arm's.
    """
    yield from _step_problems(stages, total_steps)
    thawed: str | None = None
    for index, stage in enumerate(stages):
        given = stage.settings
        own = getattr(given, "train", "new") or train
        where = (index, stage.kind, "train")
        if own in ("lora", "new+lora") and not has_lora:
            yield where, f"{own} needs lora, the arm's adapters, which are not given"
        if own == "none":
            yield where, "expected something that trains, got none: leave the stage out"
        if stage.kind != "tune" and thawed is not None:
            yield (
                (index, stage.kind),
                f"its teacher is the model with its branch silent, and {thawed} before it trains "
                "what that is made of: put it first",
            )
        if stage.kind == "tune" and own not in FROZEN_BASE:
            thawed = thawed or f"stages.{index} (tune)"


def _step_problems(
    stages: Sequence[Stage], total_steps: int
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    open_ended = [index for index, stage in enumerate(stages) if stage.settings.steps is None]
    given = sum(stage.settings.steps or 0 for stage in stages)
    if len(open_ended) > 1:
        index = open_ended[1]
        yield (
            (index, stages[index].kind, "steps"),
            f"expected a number: stages.{open_ended[0]} takes the steps that are left already",
        )
    elif open_ended and given >= total_steps:
        yield (), f"expected fewer than training's {total_steps} steps before the last, got {given}"
    elif not open_ended and given != total_steps:
        yield (), f"expected steps that add up to training's {total_steps}, got {given}"
    for index, stage in enumerate(stages):
        steps, warmup = stage.settings.steps, stage.settings.warmup_steps
        steps = total_steps - given if steps is None else steps
        if warmup is not None and warmup >= max(1, steps):
            yield (
                (index, stage.kind, "warmup_steps"),
                f"expected fewer than the stage's {steps} steps, got {warmup}",
            )
