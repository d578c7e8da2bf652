"""Checkpoints: written atomically, verified by checksum on load, rotated.

    checkpoints/step-<n>/model.safetensors       parameters and buffers by name
                         optimizer.safetensors   AdamW's moments as <quantity>/<parameter name>
                         trainer.json            TrainerState
                         manifest.json           sha256 and size of the three

Where each process writes its own shard (``sharded``), shards stand in place of the first two. No
file is a pickle, so loading a checkpoint runs no code from it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wuneng.distributed.processes import ALONE, Processes
from wuneng.distributed.whole import cut_like, whole_tensors
from wuneng.distributed.wrapping import put_away
from wuneng.errors import CheckpointError, DamagedError, InputError
from wuneng.foreign.regular import read_regular_text
from wuneng.records.atomic import directory_written_atomically, remove_directory, remove_leftovers
from wuneng.records.checksums import fault, read_checksums
from wuneng.train import sharded
from wuneng.train.model_tensors import check_fit, kept_tensors, model_tensors
from wuneng.train.optimizer import load_named_state, named_state
from wuneng.train.trainer_state import TrainerState, newer_version

__all__ = [
    "Checkpoint",
    "Content",
    "content",
    "latest_usable",
    "restore",
    "rotate",
    "save",
    "verify",
    "write",
]

MODEL, OPTIMIZER, TRAINER, MANIFEST = (
    "model.safetensors",
    "optimizer.safetensors",
    "trainer.json",
    "manifest.json",
)
_CONTENT = (MODEL, OPTIMIZER, TRAINER)
_MARGIN = 1 << 16  # room for JSON files and safetensors headers when free space is checked


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose checksums were found right."""

    path: Path
    state: TrainerState


@dataclass(frozen=True)
class Content:
    """What a checkpoint is going to hold: tensors by name, and trainer.json."""

    step: int
    weights: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    trainer: str

    def copied(self) -> Content:
        """The same in memory of its own, on the CPU: training may go on with the originals."""
        weights, moments = (
            {name: tensor.detach().to("cpu", copy=True) for name, tensor in part.items()}
            for part in (self.weights, self.moments)
        )
        return replace(self, weights=weights, moments=moments)


def content(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: TrainerState,
    processes: Processes = ALONE,
) -> Content:
    """What a checkpoint of this moment holds; its parameters and moments are the originals, which
    the optimiser's next step changes, unless they were cut among ``processes``. All of these call
    this, and the first gets the tensors."""
    first = processes.is_first
    weights = whole_tensors(kept_tensors(model), keep=first)
    moments = whole_tensors(named_state(model, optimizer), keep=first)
    return Content(state.step, weights, moments, json.dumps(state.to_json()))


def save(
    parent: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: TrainerState,
    *,
    keep: int,
    processes: Processes = ALONE,
) -> Path:
    """Write ``parent/step-<state.step>``, and only then delete all but the newest ``keep``.

    Where several ``processes`` train together all of them call this, and the first writes.

    Checkpoints of later steps (found altered when the run was resumed before them) go as well.

    Raises:
        DiskError: no room; every earlier checkpoint is still there.
    """
    held = content(model, optimizer, state, processes)

    def leave() -> Path:
        final = write(parent, held)
        rotate(parent, state.step, keep)
        return final

    return processes.first(leave)


def write(parent: Path, held: Content) -> Path:
    """Write ``parent/step-<held.step>``, complete or not at all.

    Raises:
        DiskError: no room.
    """
    weights, moments = dict(held.weights), dict(held.moments)
    needed = _MARGIN + sum(t.nbytes for part in (weights, moments) for t in part.values())
    final = parent / f"step-{held.step}"
    with directory_written_atomically(final, needed, checksums=MANIFEST) as temporary:
        save_file({name: t.contiguous() for name, t in weights.items()}, temporary / MODEL)
        save_file(moments, temporary / OPTIMIZER)
        (temporary / TRAINER).write_text(held.trainer, encoding="utf-8")
    return final


def verify(path: Path) -> Checkpoint:
    """Check every file of the checkpoint at ``path`` against its manifest.

    Raises:
        CheckpointError: in one line, which file is missing, cut short, altered or unreadable.
        InputError: a newer version has written it.
    """
    try:
        files = read_checksums(path, MANIFEST)
    except DamagedError as error:
        raise CheckpointError(str(error)) from None
    shards = [name for name in files if sharded.is_shard(name)]
    if TRAINER in files and (unknown := sorted(set(files) - {*_CONTENT, *shards})):
        raise InputError(f"{path / MANIFEST}: {newer_version(unknown[0])}")
    if set(files) != ({TRAINER, *shards} if shards else set(_CONTENT)):
        raise CheckpointError(f"{path / MANIFEST}: does not list {', '.join(_CONTENT)}, or shards")
    for name, written in files.items():
        found = fault(path / name, written)
        if found is not None:
            raise CheckpointError(f"{path / name}: {found}")
    try:
        return Checkpoint(path, TrainerState.from_json(_read_json(path / TRAINER)))
    except CheckpointError as error:
        raise CheckpointError(f"{path / TRAINER}: {error}") from None
    except InputError as error:
        raise InputError(f"{path / TRAINER}: {error}") from None


def latest_usable(parent: Path, report: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that verifies, or None; each unusable one is reported in one line.

    Leftovers of killed writes are deleted first.

    Raises:
        InputError: a newer version has written the newest: an older one is not continued in its
            place, after which it would be deleted.
    """
    for name in remove_leftovers(parent):
        report(f"removed {parent / name}, left by a write that never finished")
    for step in sorted(_steps(parent), reverse=True):
        try:
            return verify(parent / f"step-{step}")
        except CheckpointError as error:
            report(f"checkpoint not usable: {error}; trying the one before")
    return None


def restore(
    checkpoint: Checkpoint,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    moments: bool = True,
) -> None:
    """Copy the checkpoint's tensors into ``model`` and ``optimizer``, in place; without its
    ``moments`` where these are of a phase that was over.

    Raises:
        CheckpointError: names or shapes differ from the model's.
    """
    put_away(model)
    path, own = checkpoint.path, model_tensors(model)
    if not (path / MODEL).exists():
        sharded.restore(path, model, own, optimizer, moments=moments)
        return
    check_fit(path / MODEL, _kinds(path / MODEL), own)
    with torch.no_grad():
        for name, tensor in own.items():
            # Opened anew each time: all of a file that stays mapped would lie beside the model.
            with safe_open(path / MODEL, framework="pt") as stored:
                tensor.copy_(cut_like(stored.get_tensor(name), tensor))
    if moments:
        load_named_state(model, optimizer, load_file(path / OPTIMIZER))


def _kinds(file: Path) -> dict[str, tuple[torch.dtype, torch.Size]]:
    """Dtype and shape of every tensor of ``file``."""
    with safe_open(file, framework="pt") as stored:
        tensors = ((name, stored.get_tensor(name)) for name in stored.keys())  # noqa: SIM118
        return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors}


def rotate(
    parent: Path, newest: int, keep: int, stays: Callable[[int], bool] = lambda step: False
) -> None:
    """Delete all checkpoints but, up to step ``newest``, the newest ``keep`` and those of steps of
    which ``stays`` is true."""
    steps = sorted(_steps(parent), reverse=True)
    kept = [step for step in steps if step <= newest][: max(1, keep)]
    for step in set(steps) - set(kept):
        if step > newest or not stays(step):
            remove_directory(parent / f"step-{step}")


def _steps(parent: Path) -> list[int]:
    if not parent.is_dir():
        return []
    names = (re.fullmatch(r"step-(\d+)", path.name) for path in parent.iterdir())
    return [int(match.group(1)) for match in names if match]


def _read_json(file: Path) -> Any:
    try:
        return json.loads(read_regular_text(file))
    except FileNotFoundError:
        raise CheckpointError(f"{file}: missing") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: unreadable ({error})") from None
