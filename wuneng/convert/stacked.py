"""Experts, which checkpoints store one by one, and a model holds in one tensor for all.

As in :mod:`wuneng.convert.fused`, both directions are views of a checkpoint's tensors.

Legend: E experts, F their width, D model width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from wuneng.convert.tensor_files import TensorInfo, TensorSource
from wuneng.errors import ModelError

__all__ = ["ExpertsApart", "ExpertsTogether", "apart_shapes"]

_ONE = re.compile(r"(.+\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")
_ALL = re.compile(r"(.+\.mlp\.experts)\.(gate_up|down)_proj")


class ExpertsTogether:
    """``source`` under the names of a model: ``gate_up_proj`` ``[E, 2 F, D]`` and ``down_proj``."""

    def __init__(self, source: TensorSource) -> None:
        """
        Raises:
            ModelError: an expert lacks a matrix, or has one of another shape.
        """
        self._source = source
        self.tensors: dict[str, TensorInfo] = {}
        counts: dict[str, int] = {}
        for name, info in source.tensors.items():
            found = _ONE.fullmatch(name)
            if found is None:
                self.tensors[name] = info
            else:
                counts[found[1]] = max(counts.get(found[1], 0), int(found[2]) + 1)
        self._parts: dict[str, list[list[str]]] = {}
        for place, count in counts.items():
            for whole, parts in (("gate_up_proj", ("gate", "up")), ("down_proj", ("down",))):
                names = [
                    [f"{place}.{e}.{part}_proj.weight" for part in parts] for e in range(count)
                ]
                self._add(f"{place}.{whole}", names)

    def _add(self, whole: str, names: list[list[str]]) -> None:
        held, every = self._source.tensors, [name for expert in names for name in expert]
        if lost := [name for name in every if name not in held]:
            raise ModelError(f"the source lacks {lost[0]}, which its other experts have")
        first = held[every[0]]
        if odd := [name for name in every if held[name].shape != first.shape]:
            raise ModelError(
                f"{held[odd[0]].file}: {odd[0]} has shape {list(held[odd[0]].shape)}, other "
                f"experts have {list(first.shape)}"
            )
        rows, *rest = first.shape
        shape = (len(names), len(names[0]) * rows, *rest)
        self._parts[whole] = names
        self.tensors[whole] = TensorInfo(shape, first.dtype, first.file)

    def read(self, name: str) -> Tensor:
        """The tensor, on the CPU. Errors of the source's."""
        if name not in self._parts:
            return self._source.read(name)
        experts = ([self._source.read(one) for one in expert] for expert in self._parts[name])
        return torch.stack([torch.cat(parts) for parts in experts])


class ExpertsApart:
    """``source`` under the names that checkpoints store."""

    def __init__(self, source: TensorSource) -> None:
        self._source = source
        self._places: dict[str, tuple[str, int, int, int]] = {}
        self.tensors: dict[str, TensorInfo] = {}
        for name, info in source.tensors.items():
            for one, (expert, start, end) in _apart(name, info.shape).items():
                self._places[one] = name, expert, start, end
                shape = (end - start, *info.shape[2:])
                self.tensors[one] = TensorInfo(shape, info.dtype, info.file)
            if not _ALL.fullmatch(name):
                self.tensors[name] = info

    def read(self, name: str) -> Tensor:
        """The tensor, on the CPU. Errors of the source's."""
        if name not in self._places:
            return self._source.read(name)
        whole, expert, start, end = self._places[name]
        return self._source.read(whole)[expert, start:end].clone()


def apart_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's parameters, by the names that checkpoints store."""
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        parts = _apart(name, shape)
        found |= {one: (end - start, *shape[2:]) for one, (_, start, end) in parts.items()}
        if not parts:
            found[name] = shape
    return found


def _apart(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, int, int]]:
    """Stored name to expert and rows of a tensor of all experts; empty of another."""
    found = _ALL.fullmatch(name)
    if found is None or len(shape) != 3:
        return {}
    parts = ("gate", "up") if found[2] == "gate_up" else ("down",)
    rows = shape[1] // len(parts)
    return {
        f"{found[1]}.{expert}.{part}_proj.weight": (expert, n * rows, (n + 1) * rows)
        for expert in range(shape[0])
        for n, part in enumerate(parts)
    }
