"""Tensors of a checkpoint by name, read one at a time: safetensors shards and RWKV's ``.pth``.

Whatever a file claims is checked before it is believed: headers, offsets and shapes by safetensors,
names against the index, every value for NaN and infinity. Nothing here unpickles objects; a
``.pth`` is read with ``weights_only``.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from wuneng.convert.layouts import described_keys
from wuneng.errors import ModelError, file_errors, reason, shortened
from wuneng.foreign import check_index
from wuneng.foreign.regular import read_regular_text

__all__ = ["PthFile", "SafetensorsFiles", "TensorInfo", "TensorSource", "read_json_object"]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")

#: safetensors' names of the dtypes that model weights come in.
FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor before it is read.

    Attributes:
        shape: its dimensions.
        dtype: a floating dtype.
        file: the file that holds it.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path


class TensorSource(Protocol):
    """Named tensors, grouped in files."""

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor, in the order of the files."""

    def read(self, name: str) -> Tensor:
        """The tensor, on the CPU. ModelError when it is broken or holds NaN or infinity."""


class SafetensorsFiles:
    """The safetensors shards of a directory, of which one tensor at a time is in memory."""

    def __init__(self, files: list[Path]) -> None:
        """Read the headers of ``files``.

        Raises:
            ModelError: a file is not safetensors, is cut short, holds something else than floating
                tensors, or two files hold the same name.
        """
        self.tensors: dict[str, TensorInfo] = {}
        for file in files:
            for name, info in _header(file).items():
                if name in self.tensors:
                    other = self.tensors[name].file.name
                    raise ModelError(
                        f"{file}: holds {shortened(name)}, which {other} holds as well"
                    )
                self.tensors[name] = info

    @classmethod
    def of_directory(cls, directory: Path) -> SafetensorsFiles:
        """The files of a transformers directory: one file, or the shards that its index lists.

        Raises:
            ModelError: there are none, or index and shards disagree.
        """
        check_index(directory)
        if (directory / SINGLE).is_file():
            return cls([directory / SINGLE])
        if (directory / INDEX).is_file():
            return _indexed(cls, directory)
        pickles = [name for name in _PICKLES if (directory / name).is_file()]
        if pickles:
            raise ModelError(
                f"{directory}: the weights are in {pickles[0]}, a pickle that could run code when "
                "read. Save the model with safetensors (save_pretrained) and convert that."
            )
        raise ModelError(f"{directory}: no weights; expected {SINGLE} or {INDEX}")

    def read(self, name: str) -> Tensor:
        info = self.tensors[name]
        # Opened anew each time: the pages of a file that stays mapped would add up in memory.
        with _usable(info.file), safe_open(info.file, framework="pt") as handle:
            tensor: Tensor = handle.get_tensor(name)
        return _finite(name, tensor, info.file)


class PthFile:
    """The tensors of one ``.pth`` file, memory-mapped, read without running code from it."""

    def __init__(self, file: Path) -> None:
        """Open ``file``.

        Raises:
            ModelError: it is not a torch file, wants to run code, or holds other things than
                named floating tensors.
        """
        self.file = file
        self._values = _load_pth(file)
        self.tensors: dict[str, TensorInfo] = {}
        for name, value in self._values.items():
            if not isinstance(name, str) or not isinstance(value, Tensor):
                raise ModelError(
                    f"{file}: holds {shortened(str(name), 60)!r}, which is not a named tensor; "
                    f"{described_keys(self._values)}"
                )
            if not value.is_floating_point():
                raise ModelError(f"{file}: {name} is {value.dtype}; expected floating weights")
            self.tensors[name] = TensorInfo(tuple(value.shape), value.dtype, file)

    def read(self, name: str) -> Tensor:
        return _finite(name, self._values[name], self.file)


def read_json_object(file: Path) -> dict[str, Any]:
    """A JSON file that holds an object. ModelError when it is missing, malformed or another."""
    try:
        value = json.loads(read_regular_text(file))
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file}: not readable as JSON: {reason(error)}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{file}: expected a JSON object, got {type(value).__name__}")
    return value


def _indexed(kind: type[SafetensorsFiles], directory: Path) -> SafetensorsFiles:
    file = directory / INDEX
    weight_map = read_json_object(file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{file}: no 'weight_map' from tensor names to files")
    shards: dict[str, Path] = {}
    for name, shard in weight_map.items():
        if not shard.endswith(".safetensors") or len(shard) > 255:
            raise ModelError(
                f"{file}: {shortened(name)} is said to be in {shortened(repr(shard))}; expected "
                "the name of a safetensors file in the same directory"
            )
        shards[shard] = directory / shard
    missing = [name for name, path in shards.items() if not path.is_file()]
    if missing:
        raise ModelError(f"{directory}: {INDEX} lists {shortened(missing[0])}, which is not there")
    source = kind([shards[name] for name in sorted(shards)])
    for name, shard in weight_map.items():
        info = source.tensors.get(name)
        if info is None or info.file.name != shard:
            raise ModelError(
                f"{directory / shard}: lacks {shortened(name)}, which {INDEX} says it holds"
            )
    return source


def _header(file: Path) -> dict[str, TensorInfo]:
    found = {}
    with _usable(file), safe_open(file, framework="pt") as handle:
        for name in handle.keys():  # noqa: SIM118  (not a dict)
            piece = handle.get_slice(name)
            dtype = FLOATS.get(piece.get_dtype())
            if dtype is None:
                raise ModelError(
                    f"{file}: {name} is {piece.get_dtype()}; expected {', '.join(FLOATS)} "
                    "(quantised checkpoints are not converted)"
                )
            found[name] = TensorInfo(tuple(piece.get_shape()), dtype, file)
    if not found:
        raise ModelError(f"{file}: holds no tensors")
    return found


def _usable(file: Path) -> AbstractContextManager[None]:
    return file_errors(f"{file}: not a usable safetensors file", ModelError)


def _load_pth(file: Path) -> dict[Any, Any]:
    try:
        values = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise ModelError(f"{file}: no such file") from None
    except MemoryError:
        raise
    except Exception as error:  # a hostile or torn pickle can raise anything
        hint = ""
        if "mmap can only be used" in str(error):
            return _load_old_pth(file)
        if "eights only" in str(error) or "nsupported" in str(error):
            hint = " It asks for more than tensors; such a file is never opened."
        raise ModelError(f"{file}: cannot be read as weights: {reason(error)}{hint}") from error
    return _as_dict(file, values)


def _load_old_pth(file: Path) -> dict[Any, Any]:
    """Files of torch before 1.6, which cannot be memory-mapped."""
    with file_errors(f"{file}: cannot be read as weights", ModelError):
        values = torch.load(file, map_location="cpu", weights_only=True)
    return _as_dict(file, values)


def _as_dict(file: Path, values: Any) -> dict[Any, Any]:
    if not isinstance(values, dict) or not values:
        raise ModelError(f"{file}: expected named tensors, got {type(values).__name__}")
    return values


def _finite(name: str, tensor: Tensor, file: Path) -> Tensor:
    if not tensor.numel():
        return tensor
    lowest, highest = torch.aminmax(tensor)  # NaN wins in both; no copy of the tensor is made
    if not (torch.isfinite(lowest) and torch.isfinite(highest)):
        count = int((~torch.isfinite(tensor)).sum())
        raise ModelError(f"{file}: {name} holds {count:,} values that are NaN or infinite")
    return tensor
