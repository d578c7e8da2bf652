"""What is asked before anything is written: whether this process still has what it writes in.

A process trains one unit at a time and holds a claim on its directory meanwhile (``claim``). One
that was stopped for so long that another has taken its unit over must find that out before its next
write, wherever in the program that is; so those who write ask here, and nobody has to hand the
claim down to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["check_fence", "fence_mark", "fenced"]

_fences: list[tuple[str, Callable[[], None]]] = []


@contextmanager
def fenced(mark: str, check: Callable[[], None]) -> Iterator[None]:
    """While the block runs, ``check`` is called before anything is written; it raises where that
    must not be. ``mark`` makes names of temporary directories this process' own."""
    _fences.append((mark, check))
    try:
        yield
    finally:
        _fences.pop()


def check_fence() -> None:
    """Raise what the innermost ``fenced`` raises; nothing outside of one."""
    if _fences:
        _fences[-1][1]()


def fence_mark() -> str:
    """Its mark, or an empty text."""
    return _fences[-1][0] if _fences else ""
