"""One of several processes that another process has started, and given a store to meet in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from wuneng.distributed.joining import joined_over
from wuneng.distributed.launched import Launched
from wuneng.distributed.processes import ALONE, Processes
from wuneng.errors import MissingProcess

__all__ = ["Coming", "Member", "joined_member", "open_store"]

_HERE = "127.0.0.1"


@dataclass(frozen=True)
class Member:
    """Which of them a process is, and where the others are met."""

    port: int
    """Of the store, on this machine."""
    meeting: str
    """The same for those who meet, and for nobody after them."""
    info: Launched


class Coming(Processes):
    """``size`` processes of this machine that are yet to be started: for planning."""

    def __init__(self, size: int) -> None:
        self.size = self.host_size = size


def open_store() -> Any:
    """A store of ``torch.distributed`` in this process, for those that it starts."""
    return dist.TCPStore(_HERE, 0, None, is_master=True, wait_for_workers=False)


@contextmanager
def joined_member(member: Member | None, device: str, seconds: float) -> Iterator[Processes]:
    """This process among the others while the block runs; ``ALONE`` without ``member``.

    Raises:
        MissingProcess: others did not come, or went while the block ran; it names them.
    """
    if member is None:
        yield ALONE
        return
    try:
        store = dist.TCPStore(
            _HERE, member.port, None, is_master=False, timeout=timedelta(seconds=seconds)
        )
    except RuntimeError as error:
        raise MissingProcess(f"the process that started this one is gone: {error}") from None
    place = dist.PrefixStore(member.meeting, store)
    with joined_over(place, member.info, device, seconds) as processes:
        yield processes
