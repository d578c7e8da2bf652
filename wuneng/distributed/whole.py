"""Tensors of a model that is cut among processes, whole again; and the other way round.

All processes call these functions for the same tensors in the same order.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

__all__ = ["cut_like", "outline_of", "whole", "whole_model", "whole_tensors"]

Model = TypeVar("Model", bound=nn.Module)


def whole(tensor: Tensor) -> Tensor:
    """``tensor`` with all of its parts; a plain one as it is."""
    # Asked by name: importing the class takes as long as training a small model.
    full = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()


def cut_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This process' part of ``tensor``, which all have whole, cut as ``like`` is; one that is cut
    already stays as it is."""
    mesh = getattr(like, "device_mesh", None)
    if mesh is None or hasattr(tensor, "device_mesh"):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    placed = tensor.to(like.device)
    return distribute_tensor(placed, mesh, like.placements, src_data_rank=None)


def whole_tensors(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """All of them whole; those that were cut go to the CPU one at a time.

    Args:
        keep: false in processes that only help: they get nothing back.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if keep:
            found[name] = full.cpu() if full is not tensor else tensor
    return found


def outline_of(model: Model) -> Model:
    """A copy of ``model`` whose parameters have shapes and no memory: what :func:`whole_model`
    fills. Taken before the model is cut, since that changes its classes."""
    empty: dict[int, object] = {
        id(parameter): nn.Parameter(
            torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad
        )
        for parameter in model.parameters()
    }
    return copy.deepcopy(model, empty)


def whole_model(outline: Model, cut: nn.Module, *, keep: bool) -> Model | None:
    """``outline`` on the CPU with the values that ``cut`` has; None without ``keep``."""
    values = whole_tensors({n: p.detach() for n, p in cut.named_parameters()}, keep=keep)
    if not keep:
        return None
    names = {id(parameter): name for name, parameter in outline.named_parameters()}
    filled = {
        name: nn.Parameter(values[name].cpu(), requires_grad=parameter.requires_grad)
        for name, parameter in outline.named_parameters()
    }
    for module in outline.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:  # a tied parameter stands in several modules
                module._parameters[key] = filled[names[id(parameter)]]
    own = dict(outline.named_buffers())
    for name, buffer in cut.named_buffers():
        own[name].copy_(buffer)
    return outline.to("cpu")
