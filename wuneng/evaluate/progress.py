"""How far an evaluation is: one bar of ours on a terminal's stderr, gone once it is done.

The harness has bars of its own, which come in the place of ours; where it counts what is done, ours
moves instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from wuneng.foreign import shown_line
from wuneng.foreign.terminal import PlainConsole

__all__ = ["Counted", "EvaluationBar"]

#: Told how many more are done.
Counted = Callable[[int], None]


class EvaluationBar:
    """One bar at a time: what is counted inside of something counted moves nothing.

    Args:
        wanted: whether to show it; where stderr is no terminal, it never shows.
    """

    def __init__(self, *, wanted: bool) -> None:
        self.shows = wanted and PlainConsole(stderr=True).is_terminal
        self._busy = False

    @contextmanager
    def counting(self, what: str, total: int | None, unit: str) -> Iterator[Counted]:
        """The bar in the body.

        Args:
            what: is done, as in "scoring text/wuneng".
            total: of units; None where nobody knows, then they are only counted.
        """
        if not self.shows or self._busy:
            yield lambda count: None
            return
        self._busy = True
        try:
            with _bar(shown_line(what), total, unit) as counted:
                yield counted
        finally:
            self._busy = False

    @contextmanager
    def in_place_of_the_harness(self, what: str, total: int, unit: str) -> Iterator[None]:
        """The bar in the body, moved where the harness moves the one that it makes."""
        import lm_eval.models.huggingface as harness

        theirs = harness.tqdm
        with self.counting(what, total, unit) as counted:
            harness.tqdm = lambda items=(), **_: _Counter(items, counted)
            try:
                yield
            finally:
                harness.tqdm = theirs


class _Counter:
    """What the harness takes for its bar."""

    def __init__(self, items: Iterable[Any], counted: Counted) -> None:
        self.items, self.counted = items, counted

    def __iter__(self) -> Iterator[Any]:
        for item in self.items:
            yield item
            self.counted(1)

    def update(self, count: int = 1) -> None:
        """So many more are done."""
        self.counted(count)

    def close(self) -> None:
        """The bar ends with the body of :meth:`EvaluationBar.counting`."""


@contextmanager
def _bar(what: str, total: int | None, unit: str) -> Iterator[Counted]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    of = "" if total is None else "/{task.total:,.0f}"
    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn(f"{{task.completed:,.0f}}{of} {unit}", markup=False),
        *([] if total is None else [TimeRemainingColumn()]),
    ]
    with Progress(*columns, console=PlainConsole(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)
