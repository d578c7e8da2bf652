"""Which optimiser treatment each parameter gets (RWKV-LM's rule).

Weight decay acts on matrices only. The decay's bias ``w0`` learns at twice the rate without weight
decay: it is a logit spread over several units, which Adam would otherwise move too slowly.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Group = Literal["decay", "no_decay", "double_lr"]


def group_of(name: str, parameter: Tensor) -> Group:
    """The group of the parameter with this dotted name."""
    leaf = name.rpartition(".")[2]
    if leaf == "w0":
        return "double_lr"
    if leaf in ("gate_weight", "mid_weight"):
        return "decay"
    is_matrix = leaf == "weight" and parameter.dim() >= 2 and "norm" not in name.split(".")[-2]
    return "decay" if is_matrix else "no_decay"
