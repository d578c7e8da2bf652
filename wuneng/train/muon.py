"""Muon for the matrices inside the layers, AdamW for everything else, as one optimiser.

Muon (Jordan et al., 2024) orthogonalises the momentum of a matrix; embeddings, the output
projection, vectors and stacks of small matrices are AdamW's. Muon's steps are scaled to be as large
as AdamW's (Liu et al., arXiv 2502.16982), so that one learning rate and one weight decay serve
both.
"""

from __future__ import annotations

import math
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


def orthogonalised(
    matrix: Tensor, steps: int, coefficients: tuple[float, float, float], eps: float
) -> Tensor:
    """``matrix`` with singular values near one, by iterations of Newton and Schulz in its dtype.

    Args:
        matrix: ``[rows, columns]``.
        coefficients: a, b and c of the quintic a x + b x^3 + c x^5 (Jordan et al., 2024).
        eps: the least norm that is divided by.
    """
    a, b, c = coefficients
    found = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    found = found / found.norm().clamp(min=eps)
    for _ in range(steps):
        gram = found @ found.T
        found = torch.addmm(found, torch.addmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found if matrix.shape[0] <= matrix.shape[1] else found.T


class Muon(torch.optim.Muon):
    """PyTorch's, whose products are of bfloat16; on a CPU, where most processors emulate those at
    several times their cost, of float32 or the parameter's own. The state is the same.

    Args:
        params: matrices, or groups of them, of any devices: torch's way unless all are on a CPU.
        lr, momentum, weight_decay: as torch's; steps are as large as AdamW's.
    """

    def __init__(
        self, params: Any, lr: float, momentum: float = MOMENTUM, weight_decay: float = 0.1
    ) -> None:
        scaled = "match_rms_adamw"
        super().__init__(
            params, lr=lr, momentum=momentum, weight_decay=weight_decay, adjust_lr_fn=scaled
        )

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """As :class:`torch.optim.Muon` without a closure."""
        kinds = {p.device.type for group in self.param_groups for p in group["params"]}
        if kinds != {"cpu"}:
            super().step()
            return
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group)

    def _step(self, parameter: Tensor, grad: Tensor, group: Mapping[str, Any]) -> None:
        state, momentum = self.state[parameter], group["momentum"]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        held = state["momentum_buffer"].lerp_(grad, 1 - momentum)
        update = grad.lerp(held, momentum) if group["nesterov"] else held
        update = update.to(torch.promote_types(update.dtype, torch.float32))
        update = orthogonalised(update, group["ns_steps"], group["ns_coefficients"], group["eps"])
        rate = float(group["lr"])
        parameter.mul_(1 - rate * group["weight_decay"])
        scale = 0.2 * math.sqrt(max(parameter.shape))  # as large as AdamW's
        parameter.add_(update.to(parameter.dtype), alpha=-rate * scale)


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
            self._parts.append(Muon(hidden, options["lr"]))
        if others:
            self._parts.append(torch.optim.AdamW(others, **options))
        super().__init__([g for part in self._parts for g in part.param_groups], dict(options))
        self._share()

    def _share(self) -> None:
        """Let both parts work on this optimiser's groups and state."""
        for part in self._parts:
            ours = isinstance(part, Muon)
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
