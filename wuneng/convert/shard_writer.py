"""safetensors files written tensor by tensor, so that a shard is never in memory as a whole.

The format: eight bytes of header length, a JSON header with dtype, shape and offsets of every
tensor, and the tensors' bytes one after another (the description of safetensors' authors).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wuneng.convert.tensor_files import FLOATS, INDEX, SINGLE
from wuneng.records import disk_errors

__all__ = ["Entry", "bytes_of", "write_shards"]

_NAMES = {dtype: name for name, dtype in FLOATS.items()}


@dataclass(frozen=True)
class Entry:
    """A tensor to be written: what the header says of it, and where its values come from."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


def bytes_of(shards: Iterable[list[Entry]]) -> int:
    """Bytes that the shards will take, headers included."""
    return sum(entry.nbytes + 256 for shard in shards for entry in shard)


def write_shards(directory: Path, shards: list[list[Entry]]) -> None:
    """Write the shards and, if there are several, their index, with transformers' file names.

    Raises:
        DiskError: the disk is full or refuses.
    """
    shards = [shard for shard in shards if shard]
    if len(shards) == 1:
        _write(directory / SINGLE, shards[0])
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write(directory / name, shard)
        weight_map |= {entry.name: name for entry in shard}
    entries = [entry for shard in shards for entry in shard]
    index: dict[str, Any] = {
        "metadata": {
            "total_size": sum(entry.nbytes for entry in entries),
            "total_parameters": sum(math.prod(entry.shape) for entry in entries),
        },
        "weight_map": dict(sorted(weight_map.items())),
    }
    with disk_errors(directory / INDEX):
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write(file: Path, entries: list[Entry]) -> None:
    # Wide dtypes first, as safetensors does: every tensor then starts aligned.
    entries = sorted(entries, key=lambda entry: -entry.dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        header[entry.name] = {
            "dtype": _NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.nbytes],
        }
        offset += entry.nbytes
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with disk_errors(file), file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            tensor = entry.make()
            if tuple(tensor.shape) != entry.shape or tensor.dtype != entry.dtype:
                raise ValueError(
                    f"{entry.name}: planned {entry.dtype} {list(entry.shape)}, "
                    f"made {tensor.dtype} {list(tensor.shape)}"
                )
            flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
            stream.write(flat.numpy().data)
