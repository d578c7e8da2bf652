"""The panel of units that train side by side: a row for each, and how many of all are finished."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from wuneng.foreign import shown_line
from wuneng.train.progress import Progress, clock, short_number

__all__ = ["UnitsPanel"]

_WIDE = 84
"""Columns from which a row has a bar, a speed and a validation figure as well."""


class UnitsPanel:
    """What is known of the units that train at this moment."""

    def __init__(self) -> None:
        self._progress: dict[str, Progress | None] = {}
        self._validation: dict[str, str] = {}
        self._done = self._units = 0

    def set_running(self, running: Sequence[str], done: int, units: int) -> None:
        """``running`` train now; ``done`` of all ``units`` are finished."""
        self._progress = {name: self._progress.get(name) for name in running}
        self._done, self._units = done, units

    def stepped(self, progress: Progress) -> None:
        """Remember a step of one of them."""
        self._progress[progress.unit] = progress
        for name, value in progress.validation.items():
            self._validation[progress.unit] = f"{name} {value:.4f}"
            break

    def render(self, width: int) -> Panel:
        """The panel for a terminal of so many columns."""
        wide = width >= _WIDE
        table = Table.grid(padding=(0, 2))
        for _ in range(7 if wide else 4):
            table.add_column(overflow="fold")
        for name, progress in self._progress.items():
            table.add_row(Text(shown_line(name)), *self._cells(name, progress, wide=wide))
        title = f"{self._done} of {self._units} finished, {len(self._progress)} in training"
        return Panel(table, title=title, title_align="left", expand=False)

    def _cells(self, name: str, progress: Progress | None, *, wide: bool) -> list[RenderableType]:
        if progress is None:
            return ["starting"]
        step = f"{progress.step:,} / {progress.total_steps:,}"
        left = clock(progress.seconds_left)
        if progress.step == progress.total_steps:
            left = "scoring"
        loss = f"loss {progress.loss:.4f}"
        if not wide:
            return [step, loss, left]
        bar = ProgressBar(total=progress.total_steps, completed=progress.step, width=16)
        speed = f"{short_number(progress.tokens_per_second)} tokens/s"
        return [step, bar, loss, speed, left, self._validation.get(name, "")]
