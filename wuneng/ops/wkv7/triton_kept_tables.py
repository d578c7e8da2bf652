"""The tables of the last sequences, kept: a model's layers, forward and backward, read the same.

Making the segments' takes sixty small operators, which a GPU runs in no time and its host launches
one by one: 2,880 of the 9,996 kernels of a training step of the 400m preset, whose state heads are
few enough that sequences are cut.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, TypeVar

import torch
from torch import Tensor

Table = TypeVar("Table")

LAST = 8
"""More kinds of batches than a training step has; a table is a few kilobytes."""

#: What a table is known by, the tensor that it was made from, and the table. That tensor is held
#: so that no other can lie at its address.
Kept = tuple[tuple[Any, ...], Tensor | None, Any]

_kept: deque[Kept] = deque(maxlen=LAST)
_of_capture: deque[Kept] | None = None
_lock = Lock()


def kept_table(
    make: Callable[[], Table], cu_seqlens: Tensor | None, device: torch.device, *sizes: int
) -> Table:
    """What ``make()`` returns, or what it returned for the same sequences before.

    Args:
        make: reads nothing but ``cu_seqlens`` and ``sizes``; a named function, which tells tables
            of different kinds apart.
        cu_seqlens: as :func:`wuneng.ops.wkv7`'s. Changed in place it is another.
        device: where the table lies.
    """
    kept = _place(device)
    if kept is None or not _is_counted(cu_seqlens):
        return make()
    key = (make.__qualname__, sizes, device, _stream(device), _identity(cu_seqlens))
    with _lock:
        found = next((value for other, _, value in kept if other == key), None)
    if found is None:
        found = make()
        with _lock:
            kept.append((key, cu_seqlens, found))
    return found


@contextmanager
def tables_of_capture() -> Iterator[None]:
    """In the block, in which a CUDA graph is captured, tables are the graph's: made once in it, and
    again by every replay, which may have other sequences."""
    global _of_capture  # not of a context: backward passes run in threads of autograd's
    before, _of_capture = _of_capture, deque()
    try:
        yield
    finally:
        _of_capture = before


def _place(device: torch.device) -> deque[Kept] | None:
    """Where tables are kept. Nowhere for a graph that somebody else captures: their memory would be
    the graph's, and be read when it is gone."""
    if _of_capture is not None:
        return _of_capture
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return None
    return _kept


def _is_counted(cu_seqlens: Tensor | None) -> bool:
    """Whether torch counts the changes of a tensor, by which it is recognised."""
    if torch.is_inference_mode_enabled():
        return False
    return cu_seqlens is None or (type(cu_seqlens) is Tensor and not cu_seqlens.is_inference())


def _stream(device: torch.device) -> int:
    """Another stream might read a table before it is made."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def _identity(x: Tensor | None) -> tuple[Any, ...] | None:
    return None if x is None else (x.data_ptr(), x.shape, x.stride(), x.dtype, x._version)
