"""Low-rank adapters (LoRA, arXiv 2106.09685) through peft, which is an optional dependency.

An adapter of rank r on a linear layer with i inputs and o outputs has r (i + o) parameters. Where
an arm is to have as many trainable parameters as another, all adapters get the same rank and some,
the largest first, get one more.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from wuneng.errors import InputError, RecipeError, nearest
from wuneng.recipe import LoraSettings

__all__ = [
    "adapter_parameters",
    "adapter_ranks",
    "add_adapters",
    "check_peft",
    "is_adapter",
    "merge_adapters",
]

_TOLERANCE = 0.02  # a control that is further off in size than this would not be one


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return ".lora_" in name


def check_peft() -> None:
    """Raise InputError, naming what to install, when peft is not there."""
    if importlib.util.find_spec("peft") is None:
        raise InputError(
            "lora: needs the package peft, which is not installed. Install it with: "
            "pip install 'wuneng[lora]', or remove the arm from the recipe."
        )


def adapter_ranks(
    lora: LoraSettings, shapes: Mapping[str, tuple[int, int]], budget: int | None, field: str
) -> dict[str, int]:
    """The rank of each adapter by the name of its linear layer.

    Args:
        shapes: inputs and outputs of every linear layer of the model.
        budget: parameters to come near to, where ``lora.rank`` is not given.

    Raises:
        RecipeError: no layer has one of the targets' names, or the budget cannot be met.
    """
    known = {name.rpartition(".")[2] for name in shapes}
    for target in lora.targets:
        if target not in known:
            raise RecipeError(
                f"{field}.targets: no linear layer is called {target!r}; there are "
                f"{', '.join(sorted(known))}.{nearest(target, known)}"
            )
    costs = {
        name: sum(shape)
        for name, shape in shapes.items()
        if name.rpartition(".")[2] in lora.targets
    }
    if lora.rank is not None:
        return dict.fromkeys(costs, lora.rank)
    assert budget is not None
    rank, left = divmod(budget, sum(costs.values()))
    ranks = dict.fromkeys(costs, rank)
    for name in sorted(costs, key=lambda name: -costs[name]):
        if costs[name] <= left:
            ranks[name] += 1
            left -= costs[name]
    if not budget or left / budget > _TOLERANCE:
        raise RecipeError(
            f"{field}.match: no ranks give {budget:,} parameters ({budget - left:,} come nearest); "
            "give a rank instead"
        )
    return {name: rank for name, rank in ranks.items() if rank}


def adapter_parameters(
    ranks: Mapping[str, int], shapes: Mapping[str, tuple[int, int]]
) -> dict[str, int]:
    """Name and size of every parameter that ``add_adapters`` will add."""
    sizes: dict[str, int] = {}
    for name, rank in ranks.items():
        inputs, outputs = shapes[name]
        sizes[f"{name}.lora_A.default.weight"] = rank * inputs
        sizes[f"{name}.lora_B.default.weight"] = rank * outputs
    return sizes


def add_adapters(model: nn.Module, lora: LoraSettings, ranks: Mapping[str, int]) -> None:
    """Put adapters into ``model``, in place; they change no logit yet.

    Their values come from torch's generator. Raises InputError when peft is not installed.
    """
    check_peft()
    from peft import LoraConfig, inject_adapter_in_model

    patterns = {re.escape(name): rank for name, rank in ranks.items()}
    config = LoraConfig(
        r=max(ranks.values()),
        lora_alpha=max(ranks.values()) * lora.scale,  # type: ignore[arg-type]
        rank_pattern=patterns,
        alpha_pattern={name: rank * lora.scale for name, rank in patterns.items()},
        target_modules=list(ranks),
        lora_dropout=0.0,
        bias="none",
    )
    inject_adapter_in_model(config, model)


def merge_adapters(model: nn.Module) -> None:
    """Add every adapter to the weight it stands beside and take it out, in place."""
    from peft.tuners.lora import LoraLayer

    adapted: dict[str, Any] = {n: m for n, m in model.named_modules() if isinstance(m, LoraLayer)}
    for name, layer in adapted.items():
        layer.merge(safe_merge=True)
        model.set_submodule(name, layer.get_base_layer())
