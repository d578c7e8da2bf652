"""From arms as they are written, changes only, to arms that are complete, and what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from wuneng.built_in_arms import arm_problem
from wuneng.errors import nearest
from wuneng.recipe.arms import BUILT_IN_ARMS, REPLACING, Arm, built_in, resolve_model
from wuneng.recipe.consistency import Problem, model_problems, training_problems
from wuneng.recipe.model import ModelSettings
from wuneng.recipe.source import FieldPath
from wuneng.recipe.training import OptimizerSettings, Training

__all__ = ["SHARED_STARTS", "arm_problems", "arm_training", "resolve_arms"]

#: Fields of a recipe that an arm may have otherwise.
SHARED_STARTS = ("init_from", "train", "distill", "stages")


def resolve_arms(
    model: ModelSettings, training: Training, arms: Mapping[str, Arm], starts: Mapping[str, Any]
) -> dict[str, Arm]:
    """Every arm with its complete model and optimiser settings. ``model`` is as written;
    ``starts`` has the recipe's own values of ``SHARED_STARTS``."""
    base = model.model_dump(exclude_unset=True)
    shared = training.model_dump(include=set(OptimizerSettings.model_fields))
    resolved = {}
    for name, arm in arms.items():
        changes = {**built_in(name, model), **arm.model.model_dump(exclude_unset=True)}
        if arm.replace is not None:
            changes = {**REPLACING, **changes}
        own_starts = {
            field: getattr(arm, field) for field in starts if field in arm.model_fields_set
        }
        starting = {**starts, **own_starts}
        for field in ("distill", "stages"):
            if starting["train"] == "none" and field not in own_starts:
                starting[field] = None  # the recipe's are for arms that learn
        match = arm.match
        if "match" not in arm.model_fields_set and name in BUILT_IN_ARMS:
            match = "width" if starting["init_from"] else BUILT_IN_ARMS[name].match
        own = {**shared, **arm.training.model_dump(exclude_unset=True)}
        resolved[name] = Arm(
            model=resolve_model(base, changes, loaded=starting["init_from"] is not None),
            match=match,
            training=OptimizerSettings.model_validate(own),
            lora=arm.lora,
            replace=arm.replace,
            replace_of=arm.replace_of,
            state=arm.state,
            **starting,
        )
    return resolved


def arm_training(training: Training, arm: Arm) -> Training:
    """The shared training settings with a resolved arm's own optimiser fields."""
    return training.model_copy(update=arm.training.model_dump())


def arm_problems(
    model: ModelSettings,
    training: Training,
    written: Mapping[str, Arm],
    resolved: Mapping[str, Arm],
) -> Iterator[Problem]:
    """What is wrong with the arms, each problem once, placed where the field was written."""
    yield from _choice_problems(model, written, resolved)
    shared = set(training_problems(training))
    yield from ((("training", *path), text) for path, text in sorted(shared))
    found: dict[Problem, list[str]] = {}
    for name, arm in resolved.items():
        own = written[name]
        # Where a model is loaded, its own sizes hold, and they are not known here.
        sized = [] if arm.init_from else _model_and_length_problems(arm.model, training)
        for path, text in sized:
            start = _written_in(name, "model", path, own.model)
            found.setdefault(((*start, *path), text), []).append(name)
        for path, text in sorted(set(training_problems(arm_training(training, arm))) - shared):
            start = _written_in(name, "training", path, own.training)
            found.setdefault(((*start, *path), text), []).append(name)
    for (path, text), names in found.items():
        of_arms = f" (arm {', '.join(names)})" if path[0] != "arms" else ""
        yield path, text + of_arms


def _choice_problems(
    model: ModelSettings, arms: Mapping[str, Arm], resolved: Mapping[str, Arm]
) -> Iterator[Problem]:
    """Arms that cannot be made of what the recipe says."""
    for name, arm in arms.items():
        says = {"model", "training", "lora", "replace", "state", *SHARED_STARTS}
        if name not in BUILT_IN_ARMS and not arm.model_fields_set & says:
            yield (
                ("arms", name),
                f"not a built-in arm ({', '.join(BUILT_IN_ARMS)}), so it needs model or training "
                f"to say what it changes.{nearest(name, BUILT_IN_ARMS)}",
            )
    for name in arms:
        if problem := arm_problem(name, model):
            yield ("model", problem[0]), problem[1]
    if "replace" in arms and model.num_attention_heads < 2:
        yield (
            ("model", "num_attention_heads"),
            f"expected 2 or more, of which some are replaced, got {model.num_attention_heads} "
            "(arm replace)",
        )
    for name in ("replace", "mha-heads"):
        if name in arms and resolved[name].init_from:
            yield (
                ("arms", name),
                f"the built-in arm {name} starts from nothing, and the heads it would change here "
                "are a trained model's: expected another arm (its additions leave attention "
                "whole), or init_from: null",
            )
    size = model.state_head_size
    if "rwkv7" in arms and model.hidden_size % size:
        yield (
            ("model", "hidden_size"),
            f"expected a multiple of the state head size ({size}), got {model.hidden_size} "
            "(arm rwkv7)",
        )


def _model_and_length_problems(model: ModelSettings, training: Training) -> Iterator[Problem]:
    yield from model_problems(model)
    length, longest = training.sequence_length, model.max_position_embeddings
    if length > longest:
        yield (
            ("max_position_embeddings",),
            f"expected at least training.sequence_length ({length}), got {longest}",
        )


def _written_in(
    arm: str, section: str, path: FieldPath, own: ModelSettings | OptimizerSettings
) -> FieldPath:
    """``arms.<arm>.<section>`` if the arm sets the field itself, else the shared section."""
    if path and path[0] in own.model_fields_set:
        return ("arms", arm, section)
    return (section,)
