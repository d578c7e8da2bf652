"""The processes that write one checkpoint together, also from a thread beside training.

They talk through a group of their own: what they say is never mixed up with what training's own
collective operations send at the same time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from wuneng.errors import RunError, WuNengError

__all__ = ["SaveGroup", "packed", "unpacked"]

T = TypeVar("T")


class SaveGroup:
    """One of ``size`` processes.

    Args:
        group: of gloo; None where there is one process.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, group: dist.ProcessGroup | None = None
    ) -> None:
        self.rank, self.size, self.group = rank, size, group

    def together(self, act: Callable[[], T]) -> list[T]:
        """What ``act`` returns in each process, by rank. Where it fails in one, all raise that."""
        if self.group is None:
            return [act()]
        value, error = None, None
        try:
            value = act()
        except Exception as failed:
            error = failed
        told: list[Any] = [None] * self.size
        dist.all_gather_object(told, (value, self._told(error)), group=self.group)
        if error is not None:
            raise error
        for _, wrong in told:
            if wrong is not None:
                raise unpacked(wrong)
        return [found for found, _ in told]

    def first(self, act: Callable[[], T]) -> T:
        """What ``act`` returns, or raises, in the first process."""
        return self.together(lambda: act() if self.rank == 0 else None)[0]  # type: ignore[return-value]

    def _told(self, error: Exception | None) -> Any:
        if error is None:
            return None
        if not isinstance(error, WuNengError):
            error = RunError(f"process {self.rank} stopped: {type(error).__name__}: {error}")
        return packed(error)


def packed(error: WuNengError) -> tuple[type[WuNengError], str, dict[str, Any]]:
    """Exceptions whose constructors want more than a message cannot be pickled as they are."""
    return type(error), str(error), dict(error.__dict__)


def unpacked(parts: tuple[type[WuNengError], str, dict[str, Any]]) -> WuNengError:
    """The exception that was :func:`packed`."""
    kind, message, more = parts
    error = kind.__new__(kind, message)
    error.args = (message,)
    error.__dict__.update(more)
    return error
