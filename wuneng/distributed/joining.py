"""Becoming one of several processes, and leaving them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from wuneng.device import pick_device
from wuneng.distributed.heartbeat import Heartbeat
from wuneng.distributed.launched import Launched
from wuneng.distributed.processes import ALONE, Processes, Together
from wuneng.errors import MissingProcess, WuNengError

__all__ = ["joined", "joined_over"]

_SECONDS_TO_HEAR = 5.0
_CONNECTION_ERRORS = ("gloo", "NCCL", "Connection closed", "Connection reset", "TCPStore")


@contextmanager
def joined(info: Launched | None, device: str, seconds: float) -> Iterator[Processes]:
    """This process among the others while the block runs; ``ALONE`` without ``info``.

    Args:
        device: as recipes name it: gloo joins CPUs, NCCL joins GPUs.
        seconds: that a process waits for the others.

    Raises:
        MissingProcess: others did not start, or went while the block ran; it names them.
    """
    if info is None:
        yield ALONE
        return
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=seconds)))
    except RuntimeError as error:
        place = ":".join(os.environ.get(f"MASTER_{name}", "") for name in ("ADDR", "PORT"))
        reason = str(error).partition("\n")[0]
        raise MissingProcess(
            f"process {info.rank} of {info.size} could not meet the others at {place} within "
            f"{seconds:g} seconds: {reason}"
        ) from None
    # torchrun may keep one store through its restarts, with what the killed have written there.
    attempt = dist.PrefixStore(f"attempt/{info.restarts}", store)
    with joined_over(attempt, info, device, seconds) as processes:
        yield processes


@contextmanager
def joined_over(
    store: Any, info: Launched, device: str, seconds: float, beat: float = 1.0
) -> Iterator[Together]:
    """As :func:`joined`, over a store that all processes share.

    Args:
        beat: seconds between two signs of life.
    """
    heartbeat = Heartbeat(store, info.rank, info.size, beat)
    try:
        _wait_for_all(store, info, seconds)
        kind = pick_device(device).type
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        # NCCL is given longer: who is missing is found out by the votes on the CPU.
        time_out = timedelta(seconds=2 * seconds if kind == "cuda" else seconds)
        if kind == "cuda":
            torch.cuda.set_device(info.local_rank % torch.cuda.device_count())
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("group", store),
            rank=info.rank,
            world_size=info.size,
            timeout=time_out,
        )
        votes = None
        if kind == "cuda":
            votes = dist.new_group(backend="gloo", timeout=timedelta(seconds=seconds))
        together = Together(info, store, heartbeat, votes, seconds)
        with _named_failures(together, store, info):
            yield together
        _leave(store, info)
    finally:
        heartbeat.stop()
        if dist.is_initialized():
            with suppress(RuntimeError):
                dist.destroy_process_group()


def _wait_for_all(store: Any, info: Launched, seconds: float) -> None:
    end = time.monotonic() + seconds
    while True:
        absent = [rank for rank in range(info.size) if not store.check([f"who/{rank}"])]
        if not absent:
            return
        if time.monotonic() > end:
            names = ", ".join(map(str, absent))
            raise MissingProcess(
                f"process {names} of {info.size} did not start within {seconds:g} seconds"
            )
        time.sleep(0.02)


@contextmanager
def _named_failures(together: Together, store: Any, info: Launched) -> Iterator[None]:
    """Errors of broken connections name who is missing; of others the other processes are told."""
    try:
        yield
    except MissingProcess:
        raise
    except RuntimeError as error:
        text = str(error)
        if isinstance(error, dist.DistError) or any(word in text for word in _CONNECTION_ERRORS):
            raise together.missing(text) from error
        together.heartbeat.farewell(f"{type(error).__name__}: {text}")
        raise
    except WuNengError as error:
        together.heartbeat.farewell(str(error))
        _leave(store, info)
        raise
    except BaseException as error:
        together.heartbeat.farewell(f"{type(error).__name__}: {error}")
        raise


def _leave(store: Any, info: Launched) -> None:
    """The first process may keep the store: it stays while the others may have to read it."""
    with suppress(RuntimeError):  # who has gone needs it no more
        store.set(f"done/{info.rank}", "1")
        if info.rank == 0:
            keys = [f"done/{rank}" for rank in range(info.size)]
            store.wait(keys, timedelta(seconds=_SECONDS_TO_HEAR))
