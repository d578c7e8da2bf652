"""The next batches, made by a thread while the step runs.

What is saved is where the batches *taken* end: batches that wait here are made again by whoever
resumes, and are the same ones.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter
from types import TracebackType
from typing import Any

from wuneng.data.batch import Batch, TrainingData

__all__ = ["Prefetched"]

#: One is being made while one is ready: a step that is quicker than the last finds it there.
_AHEAD = 2


class Prefetched:
    """``data``'s next ``count`` batches, made ahead of the asking. A context manager.

    With ``together``, batches that were asked for are also made when the context is left early:
    of several processes that make theirs together each has then made as many as the others.

    Nobody else may use ``data`` before the context is left: it then stands behind the batches that
    were made, and ``state_dict`` says where the taken ones end.
    """

    def __init__(self, data: TrainingData, count: int, *, together: bool = False) -> None:
        self.waited = 0.0
        """Seconds that ``next_batch`` took, in all."""
        self._data, self._together = data, together
        self._left = count
        self._state = data.state_dict()
        self._ready: deque[Future[tuple[Batch, dict[str, Any]]]] = deque()
        # One thread: batches are made in their order.
        self._maker = ThreadPoolExecutor(1, thread_name_prefix="batches")

    def __enter__(self) -> Prefetched:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._maker.shutdown(wait=True, cancel_futures=not self._together)

    def next_batch(self) -> Batch:
        """The next one. Raises what making it raised, and IndexError after ``count``."""
        began = perf_counter()
        self._make_ahead()
        batch, self._state = self._ready.popleft().result()
        self._make_ahead()
        self.waited += perf_counter() - began
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The position of ``data`` before the batch that ``next_batch`` gives next."""
        return self._state

    def _make_ahead(self) -> None:
        while self._left and len(self._ready) < _AHEAD:
            self._ready.append(self._maker.submit(self._make))
            self._left -= 1

    def _make(self) -> tuple[Batch, dict[str, Any]]:
        return self._data.next_batch(), self._data.state_dict()
