"""Which parameters of an arm train, and what that costs, found out on the meta device."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cached_property

import torch
from torch import nn

from wuneng.errors import RecipeError
from wuneng.model import WuNengConfig
from wuneng.model.counting import forward_flops_per_token
from wuneng.model.skeleton import Layout, layout
from wuneng.recipe import OptimizerSettings
from wuneng.recipe.arms import Arm
from wuneng.train.lora import adapter_parameters, adapter_ranks, is_adapter
from wuneng.train.name_patterns import names_found

__all__ = [
    "TrainableParameters",
    "arm_flops",
    "as_stage",
    "check_patterns",
    "freeze",
    "is_grafted",
    "lower_frozen",
]

_GRAFTED = re.compile(r"model\.layers\.\d+\.(state_heads\.|cross_head\.|self_attn\.shift_)")

#: Of training on a token, for each parameter of an adapter: forward, and both products backward.
ADAPTER_FLOPS = 6
#: Parameters of a linear layer, which are those of its ``base_layer`` once it has an adapter.
_OF = ("weight", "bias")


def is_grafted(name: str) -> bool:
    """Whether a parameter of this name is of the state and middle heads of an upgraded model."""
    return _GRAFTED.match(name) is not None


class TrainableParameters:
    """Called with an arm's name: name and size of every parameter that trains."""

    def __init__(
        self,
        arms: Mapping[str, Arm],
        config_of: Callable[[str], WuNengConfig],
        sequence_length: int,
    ) -> None:
        """``sequence_length``: tokens of a training sequence, by which FLOPs are counted."""
        self._arms, self._sequence_length = arms, sequence_length
        self._config_of = config_of
        self._found: dict[str, _OfArm] = {}

    def __call__(self, arm: str) -> dict[str, int]:
        """Raises RecipeError: a regular expression of ``train`` is found in no parameter's name,
        and as ``ranks``."""
        return self._of(arm).trainable

    def ranks(self, arm: str) -> dict[str, int]:
        """The rank of the adapter of each linear layer, by the layer's name; empty without lora.

        Raises:
            RecipeError: no layer has such a name, or no ranks come near the number to match.
        """
        return self._of(arm).ranks

    def of_stage(self, arm: str, train: str | list[str], layer: int | None) -> dict[str, int]:
        """What a stage's ``train`` means for the arm, or for one layer of it. Errors of a call."""
        found = self._of(arm).chosen(train)
        if layer is None:
            return found
        return {n: size for n, size in found.items() if n.startswith(f"model.layers.{layer}.")}

    def layout(self, arm: str) -> Layout:
        """What the model holds, without adapters."""
        return self._of(arm).layout

    def total(self, arm: str) -> int:
        """Parameters in all, adapters included."""
        return sum(self._of(arm).sizes.values())

    def _of(self, arm: str) -> _OfArm:
        if arm not in self._found:
            lora = self._arms[arm].lora
            budget = None
            if lora is not None and lora.match is not None:
                if lora.match_in == "flops":
                    budget = self._within_flops(arm, lora.match)
                else:
                    budget = sum(self(lora.match).values())
            self._found[arm] = _OfArm(arm, self._arms[arm], self._config_of(arm), budget)
        return self._found[arm]

    def _within_flops(self, arm: str, target: str) -> int:
        """Adapters' parameters with which ``arm`` trains on a token at the FLOPs of ``target``."""
        config, other = self._config_of(arm), self._config_of(target)
        length = self._sequence_length
        wanted = arm_flops(other, self.layout(target), self(target), length)
        bare = layout(config)
        grafted = {
            name: shape.numel()
            for name, shape in bare.parameters.items()
            if self._arms[arm].train == "new+lora" and is_grafted(name)
        }
        has = arm_flops(config, bare, grafted, length)
        if wanted <= has:
            raise RecipeError(
                f"arms.{arm}.lora.match_in: {target} trains on a token with {wanted:.3g} FLOPs, "
                f"and this arm takes {has:.3g} without adapters; match parameters instead"
            )
        return round((wanted - has) / ADAPTER_FLOPS)


class _OfArm:
    """The parameters of one arm, each question answered once."""

    def __init__(self, name: str, arm: Arm, config: WuNengConfig, budget: int | None) -> None:
        self.name, self.arm = name, arm
        self.layout = layout(config)
        self._budget = budget

    @cached_property
    def _trains(self) -> list[str | list[str]]:
        """What each of its stages trains, as a stage says it."""
        own = as_stage(self.arm.train, has_lora=self.arm.lora is not None)
        if self.arm.stages is None:
            return [own]
        return [getattr(stage.settings, "train", "new") or own for stage in self.arm.stages]

    @cached_property
    def ranks(self) -> dict[str, int]:
        lora = self.arm.lora
        if lora is None:
            return {}
        linears = self.layout.linears
        if any("new" in train for train in self._trains if isinstance(train, str)):
            # What is new trains itself: adapters are for what it was added to.
            linears = {name: shape for name, shape in linears.items() if not _GRAFTED.match(name)}
        return adapter_ranks(lora, linears, self._budget, f"arms.{self.name}.lora")

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Of every parameter, trained or not."""
        adapted = {f"{name}.{of}": f"{name}.base_layer.{of}" for name in self.ranks for of in _OF}
        own = {adapted.get(n, n): shape.numel() for n, shape in self.layout.parameters.items()}
        return own | adapter_parameters(self.ranks, self.layout.linears)

    @cached_property
    def trainable(self) -> dict[str, int]:
        """In any of its stages, in the order of the parameters."""
        chosen = [self.chosen(train) for train in self._trains]
        return {n: size for n, size in self.sizes.items() if any(n in found for found in chosen)}

    def chosen(self, train: str | list[str]) -> dict[str, int]:
        """What ``train`` of a stage means: ``new`` is state and middle heads alone."""
        sizes = self.sizes
        if isinstance(train, list):
            return self._named(train)
        if train == "all":
            return sizes
        new, adapters = "new" in train, "lora" in train
        return {
            name: size
            for name, size in sizes.items()
            if (new and _GRAFTED.match(name)) or (adapters and is_adapter(name))
        }

    def _named(self, patterns: list[str]) -> dict[str, int]:
        chosen: dict[str, int] = {}
        for pattern, found in names_found(patterns, self.sizes, f"arms.{self.name}.train").items():
            if not found:
                raise RecipeError(
                    f"arms.{self.name}.train: {pattern!r} is found in no parameter's name; names "
                    f"look like {_examples([list(self.sizes)])}"
                )
            chosen |= {name: self.sizes[name] for name in found}
        return chosen


def as_stage(train: str | list[str], *, has_lora: bool) -> str | list[str]:
    """An arm's ``train`` as a stage would say it: beside adapters ``new`` means these."""
    return "lora" if has_lora and train == "new" else train


def freeze(model: nn.Module, trainable: Mapping[str, int]) -> None:
    """Let only the parameters of these names require gradients.

    Raises:
        ValueError: the model has no parameter of one of the names.
    """
    parameters = dict(model.named_parameters())
    if unknown := trainable.keys() - parameters.keys():
        raise ValueError(f"no parameter is called {min(unknown)}")
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trainable)


def lower_frozen(model: nn.Module) -> None:
    """Hold the matrices of linear layers that require no gradient in bf16; a tied head, which is
    the embedding, and all else stay as they are."""
    looked_up = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for module in model.modules():
        if not isinstance(module, nn.Linear) or id(module.weight) in looked_up:
            continue
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)


def arm_flops(
    config: WuNengConfig,
    built: Layout,
    trains: Mapping[str, int],
    sequence_length: int,
    teacher: WuNengConfig | None = None,
) -> float:
    """FLOPs of training on one token, forward and backward.

    Frozen weights save the product that makes their gradient; a teacher costs a forward pass.
    """
    adapters = sum(size for name, size in trains.items() if is_adapter(name))
    flops = 3 * forward_flops_per_token(config, sequence_length) + ADAPTER_FLOPS * adapters
    for name, (inputs, outputs) in built.linears.items():
        weight = f"{name}.weight"
        if weight not in built.parameters:  # the output projection, tied to the embedding
            weight = "model.embed_tokens.weight"
        if weight not in trains and f"{name}.base_layer.weight" not in trains:
            flops -= 2 * inputs * outputs
    if teacher is not None:
        flops += forward_flops_per_token(teacher, sequence_length)
    return flops


def check_patterns(
    trainings: Mapping[str, OptimizerSettings], trainable: Callable[[str], Mapping[str, int]]
) -> None:
    """Raise RecipeError for a regular expression of ``learning_rates`` that no arm answers to, or
    that is not done with the names in time."""
    unused: dict[str, None] = {}
    for training in trainings.values():
        unused |= dict.fromkeys(training.learning_rates)
    if not unused:
        return
    names = {arm: list(trainable(arm)) for arm in trainings}
    every = dict.fromkeys(name for own in names.values() for name in own)
    found = names_found(unused, every, "training.learning_rates")
    for arm, training in trainings.items():
        for pattern in training.learning_rates:
            if not set(names[arm]).isdisjoint(found[pattern]):
                unused.pop(pattern, None)
    if unused:
        raise RecipeError(
            f"training.learning_rates: {next(iter(unused))!r} is found in no trainable parameter's "
            f"name of any arm; names look like {_examples(list(names.values()))}"
        )


def _examples(names: list[list[str]]) -> str:
    longest = max(names, key=len)
    return ", ".join(longest[len(longest) // 2 :][:2])
