"""Processes that fail on purpose, each at a step or while saving."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import HuggingFaceStorageWriter

from tests.distributed.cases import run_text
from wuneng.data.batch import Batch
from wuneng.distributed.processes import Processes
from wuneng.train import checkpoint, quality, sharded
from wuneng.train import step as step_module
from wuneng.train.step import Numerics


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stopped() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def hanging() -> None:
    time.sleep(1000)


def raising() -> None:
    raise ZeroDivisionError("of one process alone")


def at_step(processes: Processes, recipe: Path, rank: int, step: int, fault: Any) -> Any:
    """``fault()`` in process ``rank`` in the middle of step ``step``."""
    ask, calls = step_module.ask, [0]

    def asked(*arguments: Any) -> torch.Tensor:
        calls[0] += 1
        if (processes.rank, calls[0]) == (rank, step):
            fault()
        return ask(*arguments)

    step_module.ask = asked
    try:
        return run_text(processes, recipe, ("parallel.shard=2",), None)
    finally:
        step_module.ask = ask


def while_validating(processes: Processes, recipe: Path, rank: int, fault: Any) -> Any:
    """``fault()`` in process ``rank`` in the middle of the first validation, after step 4."""
    ask, calls = quality.ask, [0]

    def asked(*arguments: Any) -> Any:
        calls[0] += 1
        if (processes.rank, calls[0]) == (rank, 1):
            fault()
        return ask(*arguments)

    quality.ask = asked
    try:
        return run_text(
            processes, recipe, ("parallel.shard=2", "training.checkpoint_every=3"), None
        )
    finally:
        quality.ask = ask


def while_saving(processes: Processes, recipe: Path, rank: int, fault: Any) -> Any:
    """``fault()`` in process ``rank`` while the first writes its second checkpoint."""
    save, calls = checkpoint.whole_tensors, [0]

    def saved(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3 and processes.rank == rank:
            fault()
        return save(*arguments, **named)

    checkpoint.whole_tensors = saved
    try:
        return run_text(processes, recipe, (), None)
    finally:
        checkpoint.whole_tensors = save


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def elsewhere() -> None:
    """What this process writes from now on is where the others do not look."""
    sharded._own_digests = lambda *_: {
        "shard-00002-model-00001-of-00001.safetensors": {"bytes": 1, "sha256": ""}
    }


def while_writing_a_shard(
    processes: Processes, recipe: Path, rank: int, fault: Any, changes: tuple[str, ...]
) -> Any:
    """``fault()`` in process ``rank`` when it writes its part of the second checkpoint."""
    write, calls = HuggingFaceStorageWriter.write_data, [0]

    def written(self: Any, plan: Any, planner: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2 and processes.rank == rank:
            fault()
        return write(self, plan, planner)

    HuggingFaceStorageWriter.write_data = written
    try:
        return run_text(processes, recipe, changes, None)
    finally:
        HuggingFaceStorageWriter.write_data = write


def not_finite(processes: Processes, recipe: Path, rank: int, changes: tuple[str, ...] = ()) -> Any:
    """The third step's share of process ``rank`` has a loss that is not a number."""
    share, calls = Numerics.share, [0]

    def shared(self: Numerics, batch: Batch) -> Batch:
        calls[0] += 1
        return share(self, batch)

    ask = step_module.ask

    def asked(*arguments: Any) -> torch.Tensor:
        found = ask(*arguments)
        return found * float("nan") if (processes.rank, calls[0]) == (rank, 6) else found

    Numerics.share, step_module.ask = shared, asked  # type: ignore[method-assign]
    try:
        return run_text(processes, recipe, changes, None)
    finally:
        Numerics.share, step_module.ask = share, ask  # type: ignore[method-assign]
