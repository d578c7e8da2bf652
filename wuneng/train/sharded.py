"""Checkpoints of which every process writes its own part, by ``torch.distributed.checkpoint``.

    checkpoints/step-<n>/shard-<process>-model-<i>-of-<k>.safetensors
                         trainer.json, manifest.json      as in any checkpoint

A shard holds parts of tensors, named ``model/<parameter>`` and
``optimizer/<quantity>/<parameter>``, and in its header where they belong: any number of processes
reads them, each what it needs. They are written into a directory that the first process made and
holds; once all have written, it puts the manifest beside them and renames it.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wuneng.distributed.save_group import SaveGroup
from wuneng.errors import CheckpointError, InputError
from wuneng.records.atomic import directory_written_atomically, disk_error
from wuneng.records.checksums import digest
from wuneng.train.model_tensors import check_fit, kept_tensors
from wuneng.train.optimizer import load_named_state, named_state, owner
from wuneng.train.trainer_state import TrainerState

__all__ = ["ShardedContent", "content", "is_shard", "restore", "write"]

_MODEL, _OPTIMIZER = "model/", "optimizer/"
_MARGIN = 1 << 20  # headers of the shards, which name every tensor, and JSON files


@dataclass(frozen=True)
class ShardedContent:
    """What this process adds to a checkpoint: whole tensors or its parts of them, by name."""

    step: int
    tensors: Mapping[str, Tensor]
    trainer: str

    def copied(self) -> ShardedContent:
        """The same in memory of its own, on the CPU: training may go on with the originals."""
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        stager = DefaultStager(StagingOptions(False, False, False, False))
        try:
            copies = stager.stage(dict(self.tensors))
            assert isinstance(copies, dict)  # at once, not a promise of it
            return replace(self, tensors=copies)
        finally:
            stager.close()


def is_shard(name: str) -> bool:
    """Whether a file of a checkpoint is one process' part of it."""
    return re.fullmatch(r"shard-\d{5,}-model-\d{5,}-of-\d{5,}\.safetensors", name) is not None


def content(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainerState
) -> ShardedContent:
    """What a checkpoint of this moment holds of this process; its parameters and moments are the
    originals, which the optimiser's next step changes."""
    tensors = {f"{_MODEL}{name}": tensor for name, tensor in kept_tensors(model).items()}
    moments = named_state(model, optimizer)
    tensors |= {f"{_OPTIMIZER}{name}": tensor for name, tensor in moments.items()}
    return ShardedContent(state.step, tensors, json.dumps(state.to_json()))


def write(
    parent: Path,
    held: ShardedContent,
    group: SaveGroup,
    *,
    trainer: str,
    manifest: str,
    written: Callable[[], None],
) -> None:
    """Write ``parent/step-<held.step>`` in all processes of ``group``, complete or not at all.

    Args:
        trainer: the file for ``held.trainer``.
        manifest: the file of checksums.
        written: called in the first process once it is complete.

    Raises:
        DiskError: no room for one of them: told in all.
        InputError: the first process does not see what another wrote.
    """
    final = parent / f"step-{held.step}"
    needed = _MARGIN + sum(tensor.nbytes for tensor in held.tensors.values())
    digests: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        directory = directory_written_atomically(final, needed, checksums=manifest, known=digests)
        temporary = group.first(lambda: stack.enter_context(directory))
        _write_shards(temporary, final, held, group, needed)
        for own in group.together(lambda: _own_digests(temporary, group.rank)):
            digests |= own

        def complete() -> None:
            _check_seen(temporary, digests)
            (temporary / trainer).write_text(held.trainer, encoding="utf-8")
            stack.close()
            written()

        group.first(complete)


def _write_shards(
    temporary: Path, final: Path, held: ShardedContent, group: SaveGroup, needed: int
) -> None:
    from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageWriter, save

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            save(
                dict(held.tensors),
                storage_writer=HuggingFaceStorageWriter(str(temporary), save_distributed=True),
                process_group=group.group,
                no_dist=group.group is None,
            )
    except CheckpointException as error:  # the same in all: what each failed with
        for cause, _ in error.failures.values():
            full = disk_error(cause, final, needed)
            if full is not None:
                raise full from error
        raise cause from error


def _own_digests(directory: Path, rank: int) -> dict[str, dict[str, Any]]:
    """Of what this process wrote: nothing where other processes hold all that it holds."""
    return {file.name: digest(file) for file in directory.glob(f"shard-{rank + 1:05}-*")}


def _check_seen(directory: Path, digests: Mapping[str, Mapping[str, Any]]) -> None:
    for name, written in digests.items():
        file = directory / name
        if not file.is_file() or file.stat().st_size != written["bytes"]:
            raise InputError(
                f"{file}: written by another process, and not seen by the first: expected a run "
                "directory on a file system that all hosts share. Or set parallel.checkpoints: "
                "whole"
            )


def restore(
    path: Path,
    model: nn.Module,
    own: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    moments: bool,
) -> None:
    """Read into ``own``, the tensors of ``model``, and where ``moments`` are wanted into
    ``optimizer``, what this process needs of the checkpoint at ``path``, however many processes
    wrote it.

    Raises:
        CheckpointError: names, shapes or dtypes differ from the model's.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load

    reader = HuggingFaceStorageReader(str(path))
    stored = {
        name: (found.properties.dtype, found.size)  # type: ignore[union-attr]
        for name, found in reader.read_metadata().state_dict_metadata.items()
    }
    check_fit(path, _below(_MODEL, stored), own)
    if unknown := sorted(n for n in stored if not n.startswith((_MODEL, _OPTIMIZER))):
        raise CheckpointError(f"{path}: expected model/ and optimizer/, found {unknown[0]}")
    wanted = {f"{_MODEL}{name}": tensor for name, tensor in own.items()}
    read = {}
    if moments:
        of_optimizer = _below(_OPTIMIZER, stored).items()
        read = {name: _empty(model, name, *kind) for name, kind in of_optimizer}
    wanted |= {f"{_OPTIMIZER}{name}": tensor for name, tensor in read.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        load(dict(wanted), storage_reader=reader, no_dist=True)
    if moments:
        load_named_state(model, optimizer, read)


def _below(prefix: str, stored: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name.removeprefix(prefix): kind for name, kind in stored.items() if name.startswith(prefix)
    }


def _empty(model: nn.Module, key: str, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    """Room for this process' part of a moment, cut as its parameter is."""
    parameter = owner(model, key, shape)
    if shape != parameter.shape:
        return torch.zeros(shape, dtype=dtype)
    return torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
