"""Which arms' passes can be captured in CUDA graphs; ``wuneng.train.captured`` captures them."""

from __future__ import annotations

import torch

from wuneng.errors import InputError
from wuneng.train.plan import ArmPlan

__all__ = ["check_captured"]


def check_captured(arm: ArmPlan, processes: int, device: torch.device | None = None) -> None:
    """InputError where ``training.cuda_graph`` is set and cannot be for this arm.

    Args:
        processes: that train it together.
        device: None: wherever it will be trained.
    """
    if not arm.training.cuda_graph:
        return
    problem = ""
    if device is not None and device.type != "cuda":
        problem = f"expected a CUDA device, got {device}"
    elif processes > 1:
        problem = f"expected one process, got {processes}; --jobs trains several arms at once"
    elif arm.teacher is not None or any(phase.kind for phase in arm.phases):
        problem = "a teacher's passes (distill, stages) are not captured"
    elif arm.facts.state != "keep":
        problem = f"state {arm.facts.state} is not captured"
    if problem:
        raise InputError(
            f"arms.{arm.name}: training.cuda_graph: {problem}. Set training.cuda_graph to false"
        )
