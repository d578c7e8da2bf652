"""This process among those that train one arm together.

Each draws the same batches and takes its part of them, so little has to be told: what the first
process found and did (opening a run, saving) goes through the store that all of them share, sums
and votes of every step through a group of PyTorch's.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from wuneng.device import pick_device
from wuneng.distributed.degrees import Degrees
from wuneng.distributed.heartbeat import Heartbeat
from wuneng.distributed.launched import Launched
from wuneng.distributed.save_group import SaveGroup, packed, unpacked
from wuneng.distributed.telling import Telling, wait_for_first
from wuneng.errors import InputError, MissingProcess, RunError, WuNengError

__all__ = ["ALONE", "Once", "Processes", "Together"]

T = TypeVar("T")


class Once(Protocol):
    """Does something in the first process, and tells all what came of it."""

    def __call__(self, act: Callable[[], T]) -> T:
        """What ``act`` returns or raises there."""
        ...


def _in_this_process(act: Callable[[], T]) -> T:
    return act()


class Processes:
    """As this class has it there is no other process; :class:`Together` is one of several."""

    rank = 0
    size = 1
    host_size = 1
    """Processes of this host."""
    restarts = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and talks to people."""
        return self.rank == 0

    def first(self, act: Callable[[], T]) -> T:
        """What ``act`` returns or raises in the first process, in all of them. It is done once, and
        may take as long as it needs; what it returns is pickled."""
        return act()

    def one_first(self, act: Callable[[], T]) -> T:
        """``act`` in every process, after the first has done it: it finds what that one left."""
        return act()

    def telling(self) -> Once:
        """As :meth:`first`, for a sequence of acts that is apart from all others, and from the
        training loop's; all processes ask for it together."""
        return _in_this_process

    def gathered(self, values: Tensor) -> Tensor:
        """``values`` ``[N]`` of all processes, ``[size, N]``."""
        return values[None]

    def agreed_signal(self, number: int | None) -> int | None:
        """The signal that any of the processes was sent, in all of them."""
        return number

    def device(self, name: str) -> torch.device:
        """The device of this process where a recipe's is ``name``."""
        return pick_device(name)

    def mesh(self, degrees: Degrees, device: torch.device) -> Any:
        """The processes in rows of replicas and columns of shards, or None for one process."""
        return None

    def save_group(self) -> SaveGroup:
        """A group of its own for writing checkpoints; all processes ask for it together."""
        return SaveGroup()


ALONE = Processes()


class Together(Processes):
    """One of several.

    Args:
        store: of ``torch.distributed``, which all of them share.
        heartbeat: of this process.
        votes: the group for sums and votes on the CPU; None: that of all.
        seconds: that this process waits for the others.
    """

    def __init__(
        self,
        info: Launched,
        store: Any,
        heartbeat: Heartbeat,
        votes: dist.ProcessGroup | None,
        seconds: float,
    ) -> None:
        self.rank, self.size = info.rank, info.size
        self.host_size, self.restarts = info.local_size, info.restarts
        self.heartbeat = heartbeat
        self._local_rank, self._seconds = info.local_rank, seconds
        self._store, self._votes = store, votes
        self._told = self._tellings = 0
        self._aside: Any = None
        self._saving: SaveGroup | None = None
        self._meshes: dict[tuple[Degrees, str], Any] = {}

    def first(self, act: Callable[[], T]) -> T:
        self._told += 1
        key = f"first/{self._told}"
        if not self.is_first:
            return self._heard(key)
        try:
            result = act()
        except WuNengError as error:
            self._store.set(key, pickle.dumps((False, packed(error))))
            raise
        except BaseException as error:
            reason = f"the first process stopped: {type(error).__name__}: {error}"
            self._store.set(key, pickle.dumps((False, packed(RunError(reason)))))
            raise
        self._store.set(key, pickle.dumps((True, result)))
        return result

    def _heard(self, key: str) -> Any:
        wait_for_first(self._store, key, self.heartbeat, self.missing)
        fine, result = pickle.loads(self._store.get(key))
        if fine:
            return result
        raise unpacked(result)

    def one_first(self, act: Callable[[], T]) -> T:
        kept: list[T] = []
        self.first(lambda: kept.append(act()))
        return kept[0] if kept else act()

    def telling(self) -> Once:
        if self._aside is None:  # one connection for all of them: one thread tells at a time
            self._aside = self._store.clone()
        self._tellings += 1
        name = f"telling/{self._tellings}"
        return Telling(self._aside, name, self.rank, self.size, self.heartbeat, self.missing)

    def gathered(self, values: Tensor) -> Tensor:
        if values.device.type != "cpu":
            # A process that does not come is found here: waiting for the device would be endless.
            dist.barrier(self._votes)
        own = values.detach().cpu()
        parts = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(parts, own, self._votes)
        return torch.stack(parts)

    def agreed_signal(self, number: int | None) -> int | None:
        votes = self.gathered(torch.tensor([number or 0], dtype=torch.int64))
        return int(votes.max()) or None

    def device(self, name: str) -> torch.device:
        device = pick_device(name)
        if device.type == "cpu":
            return device
        if device.type != "cuda" or device.index is not None:
            raise InputError(
                f"device: expected auto, cpu or cuda where several processes train together, "
                f"got {name}"
            )
        if self._local_rank >= torch.cuda.device_count():
            raise InputError(
                f"device {name}: {self.host_size} processes were started here, each needs a GPU; "
                f"this machine has {torch.cuda.device_count()}"
            )
        device = torch.device("cuda", self._local_rank)
        torch.cuda.set_device(device)
        return device

    def mesh(self, degrees: Degrees, device: torch.device) -> Any:
        key = degrees, device.type
        if key not in self._meshes:
            from torch.distributed.device_mesh import init_device_mesh

            self._meshes[key] = init_device_mesh(
                device.type,
                (degrees.replicate, degrees.shard, degrees.context),
                mesh_dim_names=("replicate", "shard", "context"),
            )
        return self._meshes[key]

    def save_group(self) -> SaveGroup:
        if self._saving is None:  # of all arms, which are saved one after another
            patience = timedelta(seconds=self._seconds)
            group = dist.new_group(backend="gloo", timeout=patience)
            self._saving = SaveGroup(self.rank, self.size, group)
        return self._saving

    def missing(self, why: str = "") -> MissingProcess:
        """The error that names the processes that are missing; found out once, told to all."""
        verdict = ""
        with suppress(RuntimeError):  # whoever kept the store may be gone
            if self._store.check(["verdict"]):
                verdict = self._store.get("verdict").decode()
        if not verdict:
            found = self.heartbeat.missing()
            named = [f"process {rank} of {self.size} {what}" for rank, what in found.items()]
            nobody = f"processes could not reach each other, though all {self.size} are alive: "
            reason = why.partition("\n")[0]
            verdict = "; ".join(named) if named else nobody + reason
            with suppress(RuntimeError):
                self._store.set("verdict", verdict)
        return MissingProcess(f"{verdict}. The last checkpoint stands: start all of them again")
