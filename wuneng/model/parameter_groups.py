"""Which optimiser treatment each parameter gets (RWKV-LM's rule).

Weight decay acts on matrices only. Kinds of state and middle heads say what they want otherwise:
RWKV-7's decay bias, for one, learns at twice the rate, because it is a logit spread over several
units, which Adam would otherwise move too slowly.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from wuneng.layers.middle.base import MiddleHeads
from wuneng.layers.short_conv import ShortConv
from wuneng.layers.state.base import StateHeads

Group = Literal["decay", "no_decay", "double_lr"]


def groups_of(model: nn.Module) -> dict[str, Group]:
    """The group of every parameter of a model by its dotted name."""
    wanted: dict[str, Group] = {}
    for path, module in model.named_modules():
        if isinstance(module, StateHeads | MiddleHeads):
            wanted |= {f"{path}.{leaf}": group for leaf, group in module.groups.items()}  # type: ignore[misc]
        elif isinstance(module, ShortConv):
            wanted[f"{path}.weight"] = "no_decay"
    return {
        name: wanted.get(name, _by_shape(name, parameter))
        for name, parameter in model.named_parameters()
    }


def _by_shape(name: str, parameter: Tensor) -> Group:
    module, _, leaf = name.rpartition(".")
    is_matrix = leaf == "weight" and parameter.dim() >= 2 and "norm" not in module.split(".")[-1]
    of_experts = module.endswith(".mlp.experts")  # a matrix for each, in one tensor
    return "decay" if is_matrix or of_experts else "no_decay"
