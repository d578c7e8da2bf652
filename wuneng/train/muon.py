"""Muon for the matrices inside the layers, AdamW for everything else, as one optimiser.

Muon (Jordan et al., 2024) orthogonalises the momentum of a matrix; embeddings, the output
projection, vectors and stacks of small matrices are AdamW's. Muon's steps are scaled to be as large
as AdamW's (Liu et al., arXiv 2502.16982), so that one learning rate and one weight decay serve
both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["HIDDEN", "MuonAndAdamW", "is_hidden_matrix"]

#: The ``kind`` of Muon's groups.
HIDDEN = "hidden"
MOMENTUM = 0.95


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter that decays is a matrix inside a layer, which Muon is for."""
    return parameter.dim() == 2 and ".layers." in f".{name}"


class MuonAndAdamW(torch.optim.Optimizer):
    """Both, over the same groups and the same state, which is saved and loaded as any optimiser's.

    Args:
        groups: those whose ``kind`` is :data:`HIDDEN` are Muon's.
        options: AdamW's ``lr``, ``betas``, ``eps`` and ``fused``.
    """

    def __init__(self, groups: list[dict[str, Any]], options: Mapping[str, Any]) -> None:
        hidden = [group for group in groups if group["kind"] == HIDDEN]
        others = [group for group in groups if group["kind"] != HIDDEN]
        self._parts: list[torch.optim.Optimizer] = []
        if hidden:
            self._parts.append(
                torch.optim.Muon(
                    hidden, lr=options["lr"], momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw"
                )
            )
        if others:
            self._parts.append(torch.optim.AdamW(others, **options))
        super().__init__([g for part in self._parts for g in part.param_groups], dict(options))
        self._share()

    def _share(self) -> None:
        """Let both parts work on this optimiser's groups and state."""
        for part in self._parts:
            ours = isinstance(part, torch.optim.Muon)
            part.param_groups = [g for g in self.param_groups if (g["kind"] == HIDDEN) == ours]
            part.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As :class:`torch.optim.Optimizer`."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """As :class:`torch.optim.Optimizer`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss
