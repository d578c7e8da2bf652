"""What the WKV-7 operator refuses, whatever backend was to run."""

from __future__ import annotations

import torch
from torch import Tensor

from wuneng.ops.wkv7.reference import compute_dtype
from wuneng.ops.wkv7.snapshots import Snapshots

NAMES = ("r", "w", "k", "v", "a", "b")


def check_inputs(*inputs: Tensor, axes: str = "[B, T, S, N]") -> None:
    """ValueError naming the first of r, w, k, v, a, b whose shape, dtype or device does not fit."""
    v = inputs[3]
    rank = axes.count(",") + 1
    if v.dim() != rank:
        raise ValueError(f"v must be {axes}, got shape {list(v.shape)}")
    for name, x in zip(NAMES, inputs, strict=True):
        if x.shape != v.shape:
            raise ValueError(f"{name} must have v's shape {list(v.shape)}, got {list(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {x.dtype}")
        if x.device != v.device:
            raise ValueError(f"{name} must be on v's device {v.device}, got {x.device}")


def check_cu_seqlens(cu_seqlens: Tensor | None, v: Tensor) -> int:
    """The number of sequences. The boundaries' values are checked where they are read."""
    if cu_seqlens is None:
        return v.shape[0]
    if v.shape[0] != 1:
        raise ValueError(f"cu_seqlens needs B = 1 (documents end to end), got B = {v.shape[0]}")
    if cu_seqlens.dim() != 1 or cu_seqlens.numel() < 2:
        raise ValueError(f"cu_seqlens must be [sequences + 1], got {list(cu_seqlens.shape)}")
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"cu_seqlens must be int32 or int64, got {cu_seqlens.dtype}")
    return cu_seqlens.numel() - 1


def check_state(
    name: str, state: Tensor | None, inputs: tuple[Tensor, ...], sequences: int
) -> None:
    """ValueError unless ``state`` is None or ``[sequences, S, N, N]`` of the right dtype."""
    if state is None:
        return
    size = inputs[0].shape[-1]
    _check_tensor(name, state, [sequences, inputs[0].shape[-2], size, size], inputs)
    dtype = compute_dtype(*inputs)
    if state.dtype != dtype:
        raise ValueError(f"{name} must be {dtype}, got {state.dtype}: the state is never rounded")


def check_snapshots(snapshots: Snapshots, inputs: tuple[Tensor, ...], sequences: int) -> None:
    """ValueError naming the field of ``snapshots`` that does not fit the inputs."""
    batch, tokens, heads, size = inputs[0].shape
    if snapshots.every < 16 or snapshots.every % 16:
        raise ValueError(f"snapshots.every must be a multiple of 16, got {snapshots.every}")
    weights, ring, position = snapshots.weights, snapshots.ring, snapshots.position
    if weights.dim() != 4 or weights.shape[-1] < 1:
        raise ValueError(f"snapshots.weights must be [B, T, S, 1 + n], got {list(weights.shape)}")
    count = snapshots.count
    _check_tensor("snapshots.weights", weights, [batch, tokens, heads, 1 + count], inputs)
    if not weights.is_floating_point():
        raise ValueError(f"snapshots.weights must be floating point, got {weights.dtype}")
    if (ring is None) != (position is None):
        missing = "ring" if ring is None else "position"
        raise ValueError(f"snapshots.{missing} is missing: give ring and position together")
    if ring is None or position is None:
        return
    _check_tensor("snapshots.ring", ring, [sequences, count, heads, size, size], inputs)
    dtype = compute_dtype(*inputs)
    if ring.dtype != dtype:
        raise ValueError(f"snapshots.ring must be {dtype}, got {ring.dtype}")
    if list(position.shape) != [sequences] or position.dtype != torch.int64:
        raise ValueError(
            f"snapshots.position must be int64 [{sequences}], "
            f"got {position.dtype} {list(position.shape)}"
        )


def _check_tensor(name: str, x: Tensor, shape: list[int], inputs: tuple[Tensor, ...]) -> None:
    if list(x.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {list(x.shape)}")
    if x.device != inputs[0].device:
        raise ValueError(f"{name} must be on the inputs' device {inputs[0].device}, got {x.device}")
