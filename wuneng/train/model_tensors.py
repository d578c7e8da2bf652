"""What of a model a checkpoint holds, and whether what one holds is of this model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from wuneng.distributed.wrapping import put_away
from wuneng.errors import CheckpointError

__all__ = ["check_fit", "kept_tensors", "model_tensors"]


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, a tied parameter once."""
    persistent = model.state_dict()
    tensors: dict[str, Tensor] = {name: p.detach() for name, p in model.named_parameters()}
    tensors |= {name: b for name, b in model.named_buffers() if name in persistent}
    return tensors


def kept_tensors(model: nn.Module) -> dict[str, Tensor]:
    """``model_tensors`` that only the optimiser changes: a forward pass may change a buffer."""
    put_away(model)
    trained = {name for name, _ in model.named_parameters()}
    own = model_tensors(model).items()
    return {name: tensor if name in trained else tensor.clone() for name, tensor in own}


def check_fit(
    file: Path, stored: Mapping[str, tuple[torch.dtype, torch.Size]], own: Mapping[str, Tensor]
) -> None:
    """CheckpointError, naming ``file``, unless it holds tensors of the names and kinds of ``own``.

    Args:
        stored: dtype and shape of what it holds.
    """
    if missing := sorted(set(own) ^ set(stored)):
        raise CheckpointError(f"{file} belongs to another model: {missing[0]} is in one only")
    for name, tensor in own.items():
        if stored[name] != (tensor.dtype, tensor.shape):
            raise CheckpointError(
                f"{file}: {name} is {_kind(*stored[name])}, "
                f"the model's is {_kind(tensor.dtype, tensor.shape)}"
            )


def _kind(dtype: torch.dtype, shape: torch.Size) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"
