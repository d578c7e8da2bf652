"""Which parameters of an arm train, found out on the meta device and applied to the real model."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from wuneng.errors import RecipeError
from wuneng.model import WuNengConfig
from wuneng.model.counting import forward_flops_per_token
from wuneng.model.skeleton import layout
from wuneng.recipe import Recipe
from wuneng.recipe.arms import Arm
from wuneng.train.lora import adapter_parameters, adapter_ranks, is_adapter

__all__ = ["ArmSizes", "arm_sizes", "check_patterns", "freeze", "lora_ranks", "trainable_of"]

_GRAFTED = re.compile(r"model\.layers\.\d+\.(state_heads|cross_head)\.")
Configuration = Callable[[str], WuNengConfig]


@dataclass(frozen=True)
class ArmSizes:
    """Sizes and cost of an arm; FLOPs are of training, forward and backward."""

    parameters: int
    trainable: int
    flops_per_token: float


def freeze(model: nn.Module, arm: Arm, name: str) -> None:
    """Let only what ``arm.train`` names require gradients.

    Raises:
        RecipeError: a regular expression of ``train`` is found in no parameter's name.
    """
    chosen = _chosen({n: p.numel() for n, p in model.named_parameters()}, arm, name)
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter_name in chosen)


def lora_ranks(recipe: Recipe, arm: str, config_of: Configuration) -> dict[str, int]:
    """The rank of the adapter of each linear layer of ``arm``, by the layer's name.

    Raises:
        RecipeError: no layer has such a name, or no ranks come near the number to match.
    """
    lora = recipe.arms[arm].lora
    assert lora is not None
    shapes = layout(config_of(arm)).linears
    budget = None
    if lora.match is not None:
        budget = sum(trainable_of(recipe, lora.match, config_of).values())
    return adapter_ranks(lora, shapes, budget, f"arms.{arm}.lora")


def trainable_of(recipe: Recipe, arm: str, config_of: Configuration) -> dict[str, int]:
    """Name and size of every parameter of ``arm`` that trains."""
    settings = recipe.arms[arm]
    built = layout(config_of(arm))
    sizes = {name: shape.numel() for name, shape in built.parameters.items()}
    if settings.lora is not None:
        sizes |= adapter_parameters(lora_ranks(recipe, arm, config_of), built.linears)
    return _chosen(sizes, settings, arm)


def arm_sizes(
    recipe: Recipe, arm: str, config_of: Configuration, teacher: WuNengConfig | None = None
) -> ArmSizes:
    """Parameters of ``arm``, those that train, and what training costs.

    Frozen weights save the product that makes their gradient; a teacher costs a forward pass.
    """
    length = recipe.training.sequence_length
    config = config_of(arm)
    built = layout(config)
    trains = trainable_of(recipe, arm, config_of)
    adapters = sum(size for name, size in trains.items() if is_adapter(name))
    flops = 3 * forward_flops_per_token(config, length) + 6 * adapters
    for name, (inputs, outputs) in built.linears.items():
        weight = f"{name}.weight"
        if weight not in built.parameters:  # the output projection, tied to the embedding
            weight = "model.embed_tokens.weight"
        if weight not in trains:
            flops -= 2 * inputs * outputs
    if teacher is not None:
        flops += forward_flops_per_token(teacher, length)
    total = adapters + sum(shape.numel() for shape in built.parameters.values())
    return ArmSizes(total, sum(trains.values()), flops)


def check_patterns(recipe: Recipe, config_of: Configuration) -> None:
    """Raise RecipeError for a regular expression of ``learning_rates`` that no arm answers to."""
    unused: dict[str, None] = {}
    for arm in recipe.arms:
        unused |= dict.fromkeys(recipe.arm_training(arm).learning_rates)
    if not unused:
        return
    names = {arm: list(trainable_of(recipe, arm, config_of)) for arm in recipe.arms}
    for arm in recipe.arms:
        for pattern in recipe.arm_training(arm).learning_rates:
            if any(re.search(pattern, name) for name in names[arm]):
                unused.pop(pattern, None)
    if unused:
        raise RecipeError(
            f"training.learning_rates: {next(iter(unused))!r} is found in no trainable parameter's "
            f"name of any arm; names look like {_examples(names)}"
        )


def _chosen(sizes: dict[str, int], arm: Arm, label: str) -> dict[str, int]:
    """The part of ``sizes`` (parameter name to number of elements) that trains."""
    if arm.train == "all":
        return sizes
    if arm.train == "none":
        return {}
    if arm.train == "new":
        if arm.lora is not None:
            return {name: size for name, size in sizes.items() if is_adapter(name)}
        return {name: size for name, size in sizes.items() if _GRAFTED.match(name)}
    chosen: dict[str, int] = {}
    for pattern in arm.train:
        found = {name: size for name, size in sizes.items() if re.search(pattern, name)}
        if not found:
            raise RecipeError(
                f"arms.{label}.train: {pattern!r} is found in no parameter's name; names look "
                f"like {_examples({label: list(sizes)})}"
            )
        chosen |= found
    return chosen


def _examples(names: dict[str, list[str]]) -> str:
    longest = max(names.values(), key=len)
    return ", ".join(longest[len(longest) // 2 :][:2])
