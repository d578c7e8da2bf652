"""Projections that some families store as one matrix, and a WuNeng as several.

Both directions are views of a checkpoint's tensors: the rest of a conversion sees the names of the
side that it writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from wuneng.convert.tensor_files import TensorInfo, TensorSource
from wuneng.errors import ModelError

__all__ = ["JoinedTensors", "SplitTensors", "joined_shapes"]

#: End of a stored name to the ends of its parts, which lie one below the other.
Fused = Mapping[str, tuple[str, ...]]


class SplitTensors:
    """``source`` under the names of the parts: each is the rows that are its own."""

    def __init__(
        self, source: TensorSource, fused: Fused, shape_of: Callable[[str], tuple[int, ...]]
    ) -> None:
        """``shape_of``: of a part, by its whole name.

        Raises:
            ModelError: a stored matrix is not as high as its parts together.
        """
        self._source = source
        self._rows: dict[str, tuple[str, int, int]] = {}
        self.tensors: dict[str, TensorInfo] = {}
        for name, info in source.tensors.items():
            end = next((end for end in fused if name.endswith(end)), None)
            if end is None:
                self.tensors[name] = info
                continue
            parts = [name.removesuffix(end) + part for part in fused[end]]
            shapes = [shape_of(part) for part in parts]
            if info.shape != (sum(shape[0] for shape in shapes), *shapes[0][1:]):
                wanted = [sum(shape[0] for shape in shapes), *shapes[0][1:]]
                raise ModelError(
                    f"{info.file}: {name} has shape {list(info.shape)}; the configuration makes "
                    f"it {wanted}"
                )
            start = 0
            for part, shape in zip(parts, shapes, strict=True):
                self._rows[part] = name, start, start + shape[0]
                self.tensors[part] = TensorInfo(shape, info.dtype, info.file)
                start += shape[0]

    def read(self, name: str) -> Tensor:
        """The tensor, on the CPU. Errors of the source's."""
        if name not in self._rows:
            return self._source.read(name)
        whole, start, end = self._rows[name]
        return self._source.read(whole)[start:end].contiguous()


class JoinedTensors:
    """``source`` under the names that the family stores."""

    def __init__(self, source: TensorSource, fused: Fused) -> None:
        self._source = source
        self._parts: dict[str, list[str]] = {}
        self.tensors: dict[str, TensorInfo] = {}
        for name, info in source.tensors.items():
            whole, parts = _joined(name, fused)
            if not parts or not source.tensors.keys() >= set(parts):
                self.tensors[name] = info
            elif name == parts[0]:
                self._parts[whole] = parts
                rows = sum(source.tensors[part].shape[0] for part in parts)
                self.tensors[whole] = TensorInfo((rows, *info.shape[1:]), info.dtype, info.file)

    def read(self, name: str) -> Tensor:
        """The tensor, on the CPU. Errors of the source's."""
        parts = self._parts.get(name)
        if parts is None:
            return self._source.read(name)
        return torch.cat([self._source.read(part) for part in parts])


def joined_shapes(
    shapes: Mapping[str, tuple[int, ...]], fused: Fused
) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's parameters, by the names that the family stores."""
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        whole, parts = _joined(name, fused)
        if not parts:
            found[name] = shape
        elif name == parts[0]:
            found[whole] = (sum(shapes[part][0] for part in parts), *shape[1:])
    return found


def _joined(name: str, fused: Fused) -> tuple[str, list[str]]:
    """The stored name that ``name`` is a part of, and all of that one's parts; none of another."""
    for end, parts in fused.items():
        own = next((part for part in parts if name.endswith("." + part)), None)
        if own is not None:
            before = name.removesuffix(own)
            return before + end, [before + part for part in parts]
    return name, []
