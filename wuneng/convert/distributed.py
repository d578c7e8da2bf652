"""Distributed checkpoints (torch.distributed.checkpoint) to safetensors and back, in one process.

A run sharded over any number of processes leaves ``.metadata`` and one or more ``.distcp`` files;
they hold ``model.<name>`` beside whatever else the run saved. The metadata is a pickle, so it is
read by an unpickler that knows the few classes that belong there and refuses everything else.
"""

from __future__ import annotations

import io
import logging
import math
import pickle
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from wuneng.convert.companions import copy_companions
from wuneng.convert.comparison import Check, compare
from wuneng.convert.conversion import MARGIN, RECORD, Conversion, Outcome, same_function
from wuneng.convert.families import FAMILIES
from wuneng.convert.model_card import conversion_card
from wuneng.convert.plan import kept_routes, main_dtype, make_plan, model_shapes
from wuneng.convert.probe import Answers, Probe, ask
from wuneng.convert.resave import read_config
from wuneng.convert.source import DCP_METADATA, Located, open_tensors
from wuneng.convert.tensor_files import TensorInfo, read_json_object
from wuneng.convert.verify import answers_of
from wuneng.errors import ModelError, RunError, file_errors, shortened
from wuneng.foreign.regular import read_regular
from wuneng.hub import CARD, card_text
from wuneng.model import WuNengForCausalLM
from wuneng.model.counting import ADDED_PARTS, added_percent, parameters_by_part
from wuneng.records import write_json, write_text_atomic
from wuneng.records.atomic import directory_written_atomically

__all__ = ["DcpTensors", "from_dcp", "write_dcp"]

_ANCHOR = "model.embed_tokens.weight"
#: What torch's wrappers insert into parameter names.
_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")
_ALLOWED = {
    "torch": {"Size", "float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8"}
    | {"int8", "int16", "bool", "strided"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "StorageMeta"},
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
}


#: Metadata of so many bytes is read by the careful unpickler; it takes a second a megabyte.
_CAREFULLY = 8 << 20


class DcpTensors:
    """The model's tensors of a distributed checkpoint, assembled one at a time from its shards.

    Attributes:
        tensors: by parameter name, without the prefix that the run saved the model under.
        dropped: what is in the checkpoint besides the model, as ``part.*`` to a count in words.
    """

    def __init__(self, directory: Path) -> None:
        """Read the metadata. ModelError when it is broken, hostile or holds no WuNeng model."""
        self.directory = directory
        self._reader = _Reader(directory)
        self._keys: dict[str, str] = {}
        self.tensors: dict[str, TensorInfo] = {}
        # Unpickling fills objects with anything, or with nothing.
        with file_errors(f"{directory / DCP_METADATA}: not usable metadata", ModelError):
            stored = self._reader.read_metadata().state_dict_metadata
            _check_tensors(stored, directory)
            others = self._sort(stored)
        self.dropped = {f"{part}.*": f"{n} entries, not the model" for part, n in others.items()}

    def _sort(self, stored: dict[str, Any]) -> Counter[str]:
        """Note the model's tensors; count what else there is, by the first part of its name."""
        prefix = _prefix(stored, self.directory)
        others: Counter[str] = Counter()
        for key, info in stored.items():
            if not key.startswith(prefix) or not isinstance(info, TensorStorageMetadata):
                others[key.partition(".")[0]] += 1
                continue
            name = _unwrapped(key[len(prefix) :])
            self._keys[name] = key
            self.tensors[name] = TensorInfo(
                tuple(info.size), info.properties.dtype, self.directory / DCP_METADATA
            )
        return others

    def read(self, name: str) -> Tensor:
        info = self.tensors[name]
        # torn or missing shards raise many classes of errors
        with file_errors(f"{self.directory}: cannot read {name}", ModelError), _plainly():
            state = {self._keys[name]: torch.empty(info.shape, dtype=info.dtype)}
            dcp.load(state, storage_reader=self._reader, no_dist=True)
            tensor = state[self._keys[name]]
            lowest_and_highest = torch.stack(torch.aminmax(tensor)) if tensor.numel() else tensor
        if not torch.isfinite(lowest_and_highest).all():
            raise ModelError(f"{self.directory}: {name} holds values that are NaN or infinite")
        return tensor


def from_dcp(located: Located, *, dtype: torch.dtype | None) -> Conversion:
    """A distributed checkpoint as one model directory.

    Raises:
        ModelError: no config.json in it or beside it; broken or hostile files.
    """
    source = DcpTensors(located.path)
    beside = Located(
        located.label, located.path, FAMILIES["wuneng"], located.config or _config(located.path)
    )
    config = read_config(beside, source)
    wanted = model_shapes(config)
    target = dtype or main_dtype(source)
    routes, dropped = kept_routes(source, wanted)
    plan = make_plan(source, routes, dropped | source.dropped, dtype=dtype, wanted=wanted)

    def verify(written: Path, probe: Probe) -> list[Check]:
        expected = _answers(source, config, probe, target)
        return compare(expected, answers_of(written, target, probe), target)

    what = "distributed checkpoint to wuneng"
    return same_function(located, what, config, plan, target, counted=config, verify=verify)


def write_dcp(
    located: Located, destination: Path, *, verify: bool, note: Callable[[str], None]
) -> Outcome:
    """A WuNeng directory as a distributed checkpoint, ``model.<name>`` for every parameter.

    Verification reads every tensor back and compares its bits.

    Raises:
        ModelError: broken source files.
        RunError: a tensor does not come back bit for bit.
        DiskError: the disk is full; nothing is left behind.
    """
    source = open_tensors(located)
    config = read_config(located, source)
    wanted = model_shapes(config)
    tensors = {name: source.read(name) for name in source.tensors if name in wanted}
    if len(tensors) < len(wanted):
        lost = next(name for name in wanted if name not in tensors)
        raise ModelError(f"{located.path}: the weights lack {lost}")
    size = sum(tensor.nbytes for tensor in tensors.values())
    with directory_written_atomically(destination, size + MARGIN) as temporary:
        note(f"wuneng to a distributed checkpoint: writing {size / 2**20:,.1f} MiB")
        with _plainly():
            dcp.save({"model": tensors}, checkpoint_id=temporary, no_dist=True)
        config.dtype = main_dtype(source)
        config.save_pretrained(temporary)
        copied = copy_companions(located.path, located.path, temporary)
        if verify:
            _require_same_bits(tensors, temporary)
        parts = parameters_by_part(config)
        record = {
            "schema": 1,
            "what": "wuneng to a distributed checkpoint",
            "source": located.label,
            "max_abs_logit_difference": 0.0 if verify else None,
            "argmax_agreement": 1.0 if verify else None,
            "kl": 0.0 if verify else None,
            "parameters": sum(parts.values()),
            "added_parameters": sum(parts[name] for name in ADDED_PARTS),
            "added_percent": added_percent(parts),
            "verified": verify,
            "verified_on": "the bits of every tensor" if verify else None,
            "checks": [],
            "tensors": {"kept": len(tensors), "new": 0, "dropped": {}},
            "copied_files": copied,
        }
        write_json(temporary / RECORD, record)
        card = conversion_card(record, located.path, config.to_dict())
        write_text_atomic(temporary / CARD, card_text(card, temporary))
    return Outcome(destination, record, [])


class _Reader(dcp.FileSystemReader):
    """torch's reader with a metadata unpickler that runs no code."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        file = Path(self.path) / DCP_METADATA
        with file_errors(f"{file}: not the metadata of a checkpoint", ModelError):
            metadata = _unpickled(read_regular(file))
        stored = getattr(metadata, "state_dict_metadata", None)
        if not isinstance(metadata, Metadata) or not isinstance(stored, dict):
            raise ModelError(f"{file}: not the metadata of a checkpoint")
        storage = getattr(metadata, "storage_meta", None) or StorageMeta()
        if not isinstance(storage, StorageMeta):
            raise ModelError(f"{file}: not the metadata of a checkpoint")
        storage.load_id = self.load_id
        metadata.storage_meta = storage
        data = metadata.storage_data or {}
        if not isinstance(data, dict):
            raise ModelError(f"{file}: not the metadata of a checkpoint")
        for info in data.values():
            name = str(getattr(info, "relative_path", ""))
            if name != Path(name).name:
                raise ModelError(f"{file}: refers to a file outside the checkpoint: {name!r}")
        return metadata


class _Allowing:
    """The part of an unpickler that finds classes: the few that belong there."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _ALLOWED.get(module, ()):
            return super().find_class(module, name)  # type: ignore[misc]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}; such a file is never opened")


class _Unpickler(_Allowing, pickle.Unpickler):
    pass


class _CarefulUnpickler(_Allowing, pickle._Unpickler):
    """Python's own, which takes no memory for what a few bytes claim is coming, but is slower."""


def _unpickled(content: bytes) -> Any:
    kind = _CarefulUnpickler if len(content) <= _CAREFULLY else _Unpickler
    try:
        return kind(io.BytesIO(content)).load()
    except MemoryError as error:
        raise pickle.UnpicklingError("it claims more than any checkpoint holds") from error


def _check_tensors(stored: dict[Any, Any], directory: Path) -> None:
    """Refuse what the metadata says where it is of the wrong type, or more than the files hold."""
    file = directory / DCP_METADATA
    room = sum(path.stat().st_size for path in directory.iterdir() if path.is_file())
    for key, info in stored.items():
        if not isinstance(key, str):
            raise ModelError(f"{file}: expected names of tensors, got {shortened(repr(key))}")
        if not isinstance(info, TensorStorageMetadata):
            continue
        size, dtype = info.size, getattr(info.properties, "dtype", None)
        plain = isinstance(size, tuple) and all(type(n) is int and n >= 0 for n in size)
        if not plain or not isinstance(dtype, torch.dtype) or not isinstance(info.chunks, list):
            raise ModelError(f"{file}: {shortened(key)} has no shape, type and pieces of a tensor")
        if math.prod(size) * dtype.itemsize > room:
            raise ModelError(
                f"{file}: {shortened(key)} is said to have shape {shortened(str(list(size)))}, "
                f"more than the {room:,} bytes of the checkpoint"
            )


def _prefix(stored: dict[str, Any], directory: Path) -> str:
    """What the run put before the model's own names, as ``model.``."""
    found = [key for key in stored if _unwrapped(key).endswith(_ANCHOR)]
    # an optimiser keeps moments under parameter names too, but with more behind them or before
    found.sort(key=lambda key: len(key))
    if not found:
        raise ModelError(f"{directory}: no {_ANCHOR} in it; expected the checkpoint of a WuNeng")
    return _unwrapped(found[0]).removesuffix(_ANCHOR)


def _unwrapped(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _config(directory: Path) -> dict[str, Any]:
    for place in (directory.parent, directory.parent.parent / "model"):
        if (place / "config.json").is_file():
            return read_json_object(place / "config.json")
    raise ModelError(
        f"{directory}: no config.json in it or beside it; copy that of the model here, so that "
        "the tensors' meaning is known"
    )


def _answers(source: DcpTensors, config: Any, probe: Probe, dtype: torch.dtype) -> Answers:
    model = WuNengForCausalLM._from_config(config, dtype=dtype)  # rotary tables stay float32
    state = {name: source.read(name) for name in model_shapes(config)}
    model.load_state_dict(state, strict=False)  # strict would want the tied matrix twice
    return ask(model.eval(), probe)


def _require_same_bits(tensors: dict[str, Tensor], directory: Path) -> None:
    again = DcpTensors(directory)
    for name, tensor in tensors.items():
        if name not in again.tensors or not torch.equal(again.read(name), tensor):
            raise RunError(f"{name} did not come back bit for bit. Nothing was written.")


@contextmanager
def _plainly() -> Iterator[None]:
    """torch's checkpointing without remarks on missing process groups and wrapped errors."""
    logger = logging.getLogger("torch.distributed")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except CheckpointException as error:
        # torch wraps what went wrong, one failure for each process; here there is one process
        raise next(iter(error.failures.values()))[0] from error
    finally:
        logger.setLevel(level)
