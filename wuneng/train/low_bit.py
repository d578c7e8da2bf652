"""AdamW whose moments take fewer bits, by torchao: bfloat16, or eight bits in blocks of 256
(Dettmers et al., arXiv 2110.02861).

Its step computes in float32 and is compiled, once for each shape. Moments of parameters with fewer
than 4,096 numbers, or not a multiple of 256, stay float32. In eight bits a second moment below
about 1e-7 of the largest in its block is zero: what has such gradients is held by ``eps`` alone.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wuneng.errors import InputError

if TYPE_CHECKING:
    from torchao.optim import AdamW8bit

__all__ = ["CODES", "SCALE", "check_installed", "low_bit_adamw", "put_together", "taken_apart"]

#: Of moments in eight bits: what a checkpoint holds of them, ``<quantity>.<part>/<parameter>``.
CODES, SCALE = "codes", "scale"


def check_installed(optimizer: str) -> None:
    """InputError, with what to install, where ``optimizer`` of a recipe needs it."""
    if optimizer.startswith("adamw-") and importlib.util.find_spec("torchao") is None:
        raise InputError(
            f"training.optimizer: {optimizer!r} needs a package that is not installed. "
            "Install it with: pip install torchao, or use adamw"
        )


def low_bit_adamw(
    groups: list[dict[str, Any]], options: Mapping[str, Any], optimizer: str
) -> torch.optim.Optimizer:
    """AdamW over ``groups``, whose moments are held as ``optimizer`` says (``adamw-bf16``,
    ``adamw-8bit``). ``options``: its ``lr``, ``betas`` and ``eps``. InputError without torchao."""
    check_installed(optimizer)
    from torchao.optim import AdamW8bit

    kind = AdamW8bit if optimizer == "adamw-8bit" else _in_bfloat16(AdamW8bit)
    return kind(groups, lr=options["lr"], betas=options["betas"], eps=options["eps"])


def _in_bfloat16(base: type[AdamW8bit]) -> type[AdamW8bit]:
    class AdamWBF16(base):  # type: ignore[misc, valid-type]
        """torchao has none for parameters in float32; its step takes moments of any type."""

        @staticmethod
        def _subclass_zeros(p: Tensor, signed: bool, block_size: int) -> Tensor:
            return torch.zeros_like(p, dtype=torch.bfloat16)

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            """What is stored keeps its type: torch gives moments that of their parameter."""
            super().load_state_dict(state_dict)
            for parameter, state in self.state.items():
                for name in state.keys() - {"step"}:
                    own = self._new_buffer(parameter, True).dtype
                    state[name] = state[name].to(own)

    return AdamWBF16


def taken_apart(value: Tensor) -> dict[str, Tensor]:
    """Plain tensors by what is appended to a quantity's name: of a plain one itself, of one in
    eight bits its codes and scales."""
    if not hasattr(value, "qmap"):
        return {"": value}
    return {f".{part}": getattr(value, part) for part in (CODES, SCALE)}


def put_together(
    optimizer: torch.optim.Optimizer, parameter: Tensor, stored: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The state of ``parameter`` from what ``taken_apart`` gave, by quantity and part."""
    state = {name: value for name, value in stored.items() if "." not in name}
    for name, codes in stored.items():
        quantity, _, part = name.partition(".")
        if part == CODES:
            new: Any = optimizer._new_buffer(parameter, quantity == "exp_avg")  # type: ignore[attr-defined]
            new.codes.copy_(codes)
            new.scale.copy_(stored[f"{quantity}.{SCALE}"])
            state[quantity] = new
    return state
