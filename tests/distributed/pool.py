"""Processes that are started once and train together in one case after another.

Importing torch takes longer than most cases: a server that has imported everything is forked. Each
case has a store and a process group of its own, so what one leaves does not disturb the next.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

from wuneng.distributed.joining import joined_over
from wuneng.distributed.launched import Launched

#: Once for all processes.
_IMPORTED = [
    "tests.context.calls",
    "tests.distributed.cases",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
]
#: Seconds that a process of a test waits for the others.
PATIENCE = 300.0


class Pool:
    """``most`` processes, of which a case uses the first few."""

    def __init__(self, most: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_IMPORTED)
        self._store = dist.TCPStore("127.0.0.1", 0, None, is_master=True, wait_for_workers=False)
        self._cases = 0
        self._pipes, self.processes = [], []
        for _ in range(most):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self.processes.append(process)

    def begin(self, size: int, case: Callable[..., Any], *args: Any, **settings: Any) -> None:
        """``case(processes, *args)`` in ``size`` processes; ``settings`` are of ``joined_over``."""
        self._cases += 1
        for rank, pipe in enumerate(self._pipes[:size]):
            pipe.send((self._store.port, self._cases, rank, size, case, args, settings))

    def end(self, size: int) -> list[Any]:
        """What each of the processes returned, or raised."""
        found = []
        for pipe in self._pipes[:size]:
            try:
                found.append(pickle.loads(pipe.recv_bytes()))
            except EOFError:
                found.append(EOFError("the process was killed"))
        return found

    def run(self, size: int, case: Callable[..., Any], *args: Any) -> list[Any]:
        """``begin`` and ``end``; what a process raised is raised here."""
        self.begin(size, case, *args)
        found = self.end(size)
        for one in found:
            if isinstance(one, BaseException):
                raise one
        return found

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


@contextmanager
def pool(most: int) -> Iterator[Pool]:
    started = Pool(most)
    try:
        yield started
    finally:
        started.close()


def _serve(pipe: Connection) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    # As a run has it on the CPU.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    while True:
        port, number, rank, size, case, args, settings = pipe.recv()
        try:
            shared = dist.TCPStore("127.0.0.1", port, None, is_master=False)
            store = dist.PrefixStore(f"case {number}", shared)
            info = Launched(rank, size, rank, size)
            settings = {"seconds": PATIENCE, **settings}
            with joined_over(store, info, "cpu", **settings) as processes:
                found = case(processes, *args)
        except BaseException as error:
            error.add_note(traceback.format_exc())
            found = error
        pipe.send_bytes(_pickled(found))
        if isinstance(found, BaseException):
            os._exit(1)  # as a run does: its connections close


def _pickled(found: Any) -> bytes:
    try:
        whole = pickle.dumps(found)
        pickle.loads(whole)
        return whole
    except Exception:
        return pickle.dumps(RuntimeError(repr(found)))
