"""A recipe resolved, once: everything about a run that is known before a token is read.

``run``, ``wuneng train --dry-run`` and ``wuneng bench`` read the plan; below it nobody sees the
recipe. Sizes are counted from names and shapes, so planning a model of any size takes moments.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

from wuneng.distributed.processes import ALONE, Processes
from wuneng.errors import RecipeError
from wuneng.model import WuNengConfig
from wuneng.model.counting import added_percent, forward_flops_per_token, parameters_by_part
from wuneng.model.skeleton import Layout
from wuneng.recipe import (
    Distillation,
    EndEvaluation,
    LoraSettings,
    ModelSettings,
    Recipe,
    SyntheticData,
    TextData,
    Training,
)
from wuneng.recipe.arms import Arm
from wuneng.train.arms import ArmConfigs, has_short_conv, has_token_shift, kind_of
from wuneng.train.distillation import teacher_config, teacher_name
from wuneng.train.outline import RunOutline
from wuneng.train.phases import Phase, phases_of
from wuneng.train.replacing import kept_heads, replaced_layers
from wuneng.train.starting_point import OwnModels, Sources
from wuneng.train.trainable import TrainableParameters, arm_flops, as_stage, check_patterns
from wuneng.train.vocabulary import TextUse, Vocabulary, task_vocabulary, text_vocabulary

__all__ = ["Adapters", "ArmFacts", "ArmPlan", "RunPlan", "TeacherPlan", "plan_run"]


@dataclass(frozen=True)
class ArmFacts:
    """What an arm is, counted before it is trained."""

    kind: str
    token_shift: bool
    short_conv: bool
    """Whether neighbouring tokens are mixed, by either."""
    parts: Mapping[str, int]
    """Parameters by part of the model, as ``wuneng.model.counting`` names them; ``adapters``."""
    parameters: int
    """All of them."""
    trainable: int
    added_percent: float
    """What state and middle heads add to the rest."""
    flops_per_token: float
    """Training FLOPs: forward and backward, and a teacher's forward pass."""
    learning_rate: float
    init_from: str | None = None
    """What the arm starts from; None: drawn from the seed."""
    trains: str | list[str] = "all"
    """``train`` of the arm, or ``lora``."""
    state: str = "keep"
    """The control of the state under which it is trained and scored."""


@dataclass(frozen=True)
class TeacherPlan:
    """The model that an arm learns from."""

    source: str
    config: WuNengConfig
    settings: Distillation


@dataclass(frozen=True)
class Adapters:
    """Low-rank adapters on an arm's frozen weights."""

    settings: LoraSettings
    ranks: Mapping[str, int]
    """By the name of the linear layer."""


@dataclass(frozen=True)
class ArmPlan:
    """One arm, complete."""

    name: str
    config: WuNengConfig
    """Sized by ``match``."""
    match: str
    training: Training
    """The shared settings with the arm's own optimiser fields."""
    settings: ModelSettings
    """The architecture as the recipe has it; where the arm starts from a model, the heads that
    are added to it."""
    init_from: str | None
    """None: weights are drawn from the seed."""
    trainable: Mapping[str, int]
    """Name and size of every parameter that trains; empty: the arm is scored as it is."""
    adapters: Adapters | None
    teacher: TeacherPlan | None
    replaced: tuple[int, ...]
    """Layers in which state heads stand in attention's place, and whose attention is not saved."""
    kept_heads: int
    """Attention heads of those layers that stay."""
    phases: tuple[Phase, ...]
    """In which it trains, one after the other; one where the arm has no stages."""
    facts: ArmFacts

    @property
    def trains(self) -> bool:
        """Whether anything of it does."""
        return self.facts.trains != "none"

    @property
    def state_bytes(self) -> int:
        """Of weights, gradients and the optimiser's moments."""
        of_trained = 4 + self.training.moment_bytes
        return 4 * self.facts.parameters + of_trained * self.facts.trainable


@dataclass(frozen=True)
class RunPlan:
    """A whole run."""

    outline: RunOutline
    arms: Mapping[str, ArmPlan]
    """Those that were asked for, in the recipe's order."""
    data: TextData | SyntheticData
    vocabulary: Vocabulary
    training: Training
    """What all arms share."""
    evaluation: EndEvaluation
    device: str
    loggers: tuple[str, ...]
    sources: Sources
    """Finds, and converts where need be, what arms start and learn from."""


def plan_run(
    recipe: Recipe,
    sources: Sources | None = None,
    *,
    arms: Collection[str] | None = None,
    text: TextUse = "present",
    processes: Processes = ALONE,
    learned: Path | None = None,
) -> RunPlan:
    """Resolve ``recipe``.

    Args:
        sources: finds what arms start from; by default only models that are WuNeng already.
        arms: those that are wanted (with what sizes them); default all.
        text: ``read`` finds the tokenizer itself, learning it from the text if the recipe says so;
            with ``present`` files have to be there, that is all, with ``none`` not even that.
        processes: that all plan this at the same time.
        learned: where a tokenizer is kept that is learned from a stream.

    Raises:
        DataError: files or a tokenizer that the recipe names are missing.
        ModelError: there is no usable model to start or to learn from.
        RecipeError: an arm contradicts the data or the model that it starts from, cannot be sized
            to match the first, or names parameters that it does not have.
    """
    sources = sources or OwnModels()
    training, evaluation, data = recipe.training, recipe.evaluation, recipe.data
    if isinstance(data, SyntheticData):
        vocabulary = task_vocabulary(data, training, evaluation, recipe.seeds[0])
    else:
        stated = recipe.model.vocab_size
        vocabulary = text_vocabulary(
            *(data, recipe.source, sources),
            stated=stated,
            text=text,
            processes=processes,
            learned=learned,
        )
    wanted = [name for name in recipe.arms if arms is None or name in arms]
    trainings = {name: recipe.arm_training(name) for name in recipe.arms}
    config_of = ArmConfigs(recipe.arms, training.sequence_length, vocabulary, sources)
    trainable = TrainableParameters(recipe.arms, config_of, training.sequence_length)
    if len(wanted) == len(recipe.arms):  # else they were found when the first of them was trained
        check_patterns(trainings, trainable)
    planned = {
        name: _arm(name, recipe.arms[name], trainings[name], config_of, trainable, sources)
        for name in wanted
    }
    return RunPlan(
        outline=RunOutline.of(recipe),
        arms=MappingProxyType(planned),
        data=data,
        vocabulary=vocabulary,
        training=training,
        evaluation=evaluation,
        device=recipe.device,
        loggers=tuple(recipe.loggers),
        sources=sources,
    )


def _arm(
    name: str,
    arm: Arm,
    training: Training,
    config_of: ArmConfigs,
    trainable: TrainableParameters,
    sources: Sources,
) -> ArmPlan:
    config, sizes = config_of(name), trainable(name)
    teacher = _teacher(name, arm, config, sources)
    adapters = None
    if arm.lora is not None:
        adapters = Adapters(arm.lora, MappingProxyType(trainable.ranks(name)))
    parts, layout = parameters_by_part(config), trainable.layout(name)
    added = added_percent(parts)
    if adapters is not None:
        parts["adapters"] = trainable.total(name) - sum(parts.values())
    phases = _phases(name, arm, training, config, trainable)
    replaced, kept = _replaced(name, arm, config)
    facts = ArmFacts(
        kind=kind_of(config),
        token_shift=has_token_shift(config),
        short_conv=has_short_conv(config),
        parts=MappingProxyType(parts),
        parameters=trainable.total(name),
        trainable=sum(sizes.values()),
        added_percent=added,
        flops_per_token=sum(
            phase.steps * _phase_flops(phase, config, layout, teacher) for phase in phases
        )
        / training.total_steps,
        learning_rate=training.learning_rate,
        init_from=arm.init_from,
        trains=as_stage(arm.train, has_lora=arm.lora is not None),
        state=arm.state,
    )
    return ArmPlan(
        name=name,
        config=config,
        match=arm.match,
        training=training,
        settings=arm.model,
        init_from=arm.init_from,
        trainable=MappingProxyType(sizes),
        adapters=adapters,
        teacher=teacher,
        replaced=replaced,
        kept_heads=kept,
        phases=phases,
        facts=facts,
    )


def _replaced(name: str, arm: Arm, config: WuNengConfig) -> tuple[tuple[int, ...], int]:
    """Layers in which something is replaced, and how many attention heads of each stay."""
    if arm.replace is None:
        return (), 0
    both = tuple(i for i in _state_layers(config) if config.has_attention(i))
    if not both:
        raise RecipeError(
            f"arms.{name}.replace: no layer of the model has attention beside state heads"
        )
    if arm.replace_of == "layers":
        return replaced_layers(arm.replace, both), 0
    return both, kept_heads(arm.replace, config, f"arms.{name}.replace_of")


def _phases(
    name: str, arm: Arm, training: Training, config: WuNengConfig, trainable: TrainableParameters
) -> tuple[Phase, ...]:
    if arm.stages is None:
        return (Phase("", "", 0, training, MappingProxyType(trainable(name))),)
    layers = _state_layers(config)
    chosen = partial(trainable.of_stage, name)
    phases = phases_of(name, arm, training, layers, chosen)
    for phase in phases:
        if (phase.teacher_top_k or 0) > config.vocab_size:
            raise RecipeError(
                f"arms.{name}.stages: distill.teacher_top_k: expected at most the vocabulary's "
                f"{config.vocab_size} tokens, got {phase.teacher_top_k}"
            )
    return phases


def _state_layers(config: WuNengConfig) -> list[int]:
    return [i for i in range(config.num_hidden_layers) if config.has_state(i)]


def _phase_flops(
    phase: Phase, config: WuNengConfig, layout: Layout, teacher: TeacherPlan | None
) -> float:
    """Training FLOPs of a token in ``phase``."""
    length = phase.training.sequence_length
    if phase.kind not in ("align", "distill"):
        taught = teacher.config if teacher else None
        return arm_flops(config, layout, phase.trainable, length, taught)
    silent = config.changed({"num_state_heads": 0, "state_layers": None, "cross_head": "none"})
    if phase.kind == "distill":
        return arm_flops(config, layout, phase.trainable, length, silent)
    base = forward_flops_per_token(silent, length)
    branch = forward_flops_per_token(config, length) - base
    head = 2.0 * config.hidden_size * config.vocab_size  # its logits are not asked for
    return base - head + 3 * branch


def _teacher(name: str, arm: Arm, config: WuNengConfig, sources: Sources) -> TeacherPlan | None:
    source = teacher_name(arm)
    if source is None or arm.distill is None:
        return None
    return TeacherPlan(source, teacher_config(name, source, config, sources), arm.distill)
