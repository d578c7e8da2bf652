"""What a person sees while training: a live panel on a terminal, plain lines elsewhere, or nothing.

The loop only knows the ``Display`` protocol. Warnings (an unusable checkpoint, a stop request)
come through in every mode.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Protocol, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from wuneng.foreign import print_line, shown_line
from wuneng.foreign.terminal import PlainConsole
from wuneng.train.progress import Progress, clock, short_number
from wuneng.train.reading_bar import ReadingBar
from wuneng.train.units_panel import UnitsPanel

__all__ = [
    "Display",
    "PanelDisplay",
    "PlainDisplay",
    "Progress",
    "QuietDisplay",
    "UnseenDisplay",
    "make_display",
]


_SECONDS_BETWEEN_LINES = 15.0

_WIDE = 84
"""Columns from which the panel has three: name, figure, and what stands beside it."""


class Display(Protocol):
    """What the loop tells whoever is watching."""

    def stepped(self, progress: Progress) -> None:
        """After every step."""
        ...

    def note(self, message: str) -> None:
        """A fact in passing: an arm begins, a checkpoint is resumed."""
        ...

    def warn(self, message: str) -> None:
        """Something that the user should know even in quiet mode."""
        ...

    def side_by_side(self, running: Sequence[str], done: int, units: int) -> None:
        """Which units train at this moment, and how many of all are finished; told where several
        train at the same time, whenever that changes."""
        ...

    def reading(self, what: str, share: float) -> None:
        """Which share of a text, 0 to 1, has been tokenised; 1 ends it."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was; calling it twice does no harm."""
        ...


def make_display(*, quiet: bool = False, to_stderr: bool = False) -> Display:
    """The display for this process: ``quiet``, a panel on a terminal, or plain lines.

    ``to_stderr`` keeps stdout free for a machine-readable result.
    """
    stream = sys.stderr if to_stderr else sys.stdout
    if quiet:
        return QuietDisplay(sys.stderr)
    console = PlainConsole(file=stream)
    return PanelDisplay(console) if console.is_terminal else PlainDisplay(stream)


class QuietDisplay:
    """Warnings only."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def stepped(self, progress: Progress) -> None:
        """Nothing."""

    def note(self, message: str) -> None:
        """Nothing."""

    def side_by_side(self, running: Sequence[str], done: int, units: int) -> None:
        """Nothing."""

    def reading(self, what: str, share: float) -> None:
        """Nothing."""

    def warn(self, message: str) -> None:
        """One line."""
        print_line(f"warning: {message}", file=self._stream)

    def close(self) -> None:
        """Nothing to undo."""


class UnseenDisplay(QuietDisplay):
    """Nothing at all: of a process beside the one that is seen."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def warn(self, message: str) -> None:
        """Nothing."""


class PlainDisplay(QuietDisplay):
    """One line for every logged step: for pipes, files and logs of a cluster."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._told = time.monotonic()

    def reading(self, what: str, share: float) -> None:
        """A line now and then, and none where it is quick."""
        if time.monotonic() - self._told > _SECONDS_BETWEEN_LINES:
            self._told = time.monotonic()
            print_line(f"tokenising {what}: {share:.0%}", file=self._stream)

    def stepped(self, progress: Progress) -> None:
        """A line if the step is logged."""
        if progress.logged:
            print_line(_line(progress), file=self._stream)

    def note(self, message: str) -> None:
        """One line."""
        print_line(message, file=self._stream)

    def side_by_side(self, running: Sequence[str], done: int, units: int) -> None:
        """One line."""
        names = ", ".join(running)
        training = f"; training {names}" if names else ""
        print_line(f"{done} of {units} finished{training}", file=self._stream)


class PanelDisplay:
    """A panel that redraws itself a few times a second; one for all units that train side by
    side."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._units: UnitsPanel | None = None
        self._progress: Progress | None = None
        self._validation: dict[str, float] = {}
        self._live: Live | None = None
        self._bar: ReadingBar | None = None

    def stepped(self, progress: Progress) -> None:
        """Remember the step; the panel's own clock draws it."""
        if self._progress is not None and self._progress.arm != progress.arm:
            self._validation = {}
        self._progress = progress
        self._validation = progress.validation or self._validation
        if self._units is not None:
            self._units.stepped(progress)
        self._begin()

    def side_by_side(self, running: Sequence[str], done: int, units: int) -> None:
        """A row for each of them from now on."""
        self._units = self._units or UnitsPanel()
        self._units.set_running(running, done, units)
        self._begin()

    def _begin(self) -> None:
        if self._live is None:
            self._live = Live(
                console=self._console,
                get_renderable=self._render,
                refresh_per_second=4,
                transient=True,
            )
            self._live.start()

    def reading(self, what: str, share: float) -> None:
        """A bar, which goes away when all is read."""
        self._bar = self._bar or ReadingBar(self._console)
        self._bar.show(what, share)
        if share >= 1.0:
            self._end_reading()

    def _end_reading(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def note(self, message: str) -> None:
        """A line above the panel."""
        self._console.print(message, highlight=False, markup=False)

    def warn(self, message: str) -> None:
        """A yellow line above the panel."""
        self._console.print(f"warning: {message}", style="yellow", highlight=False, markup=False)

    def close(self) -> None:
        """Take the panel away."""
        self._end_reading()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _render(self) -> Panel:
        if self._units is not None:
            return self._units.render(self._console.width)
        progress = self._progress
        assert progress is not None, "the panel starts with the first step"
        width = self._console.width
        bar = ProgressBar(total=progress.total_steps, completed=progress.step, width=32)
        rows: list[tuple[str, str, RenderableType]] = [
            ("step", f"{progress.step:,} / {progress.total_steps:,}", bar),
            ("loss", f"{progress.loss:.4f}", f"gradient norm {progress.grad_norm:.3g}"),
            (
                "learning rate",
                f"{progress.learning_rate:.2e}",
                f"{short_number(progress.tokens_per_second)} tokens/s",
            ),
            ("time left", clock(progress.seconds_left), ""),
            *(("validation", f"{value:.4f}", name) for name, value in self._validation.items()),
        ]
        if progress.skipped_batches:
            rows.append(("skipped", f"{progress.skipped_batches:,} batches", progress.skipped))
        table = Table.grid(padding=(0, 2))
        for _ in range(3 if width >= _WIDE else 2):
            table.add_column(overflow="fold")
        for name, value, more in rows:
            if width >= _WIDE:
                table.add_row(name, value, more)
            else:  # a number is not shortened: what stood beside it goes below
                table.add_row(name, value)
                if more:
                    table.add_row("", more)
        title = Text(shown_line(f"{progress.arm} (seed {progress.seed})"))  # markup in a string
        if title.cell_len <= width - 6:
            return Panel(table, title=title, title_align="left", expand=False)
        title.overflow = "fold"
        return Panel(Group(title, table), expand=False)


def _line(progress: Progress) -> str:
    parts = [
        progress.unit or progress.arm,
        f"step {progress.step}/{progress.total_steps}",
        f"loss {progress.loss:.4f}",
        f"lr {progress.learning_rate:.2e}",
        f"grad {progress.grad_norm:.3g}",
        f"{short_number(progress.tokens_per_second)} tok/s",
        f"eta {clock(progress.seconds_left)}",
    ]
    parts += [f"{name} {value:.4f}" for name, value in progress.validation.items()]
    if progress.skipped:
        parts.append(f"skipped: {progress.skipped} ({progress.skipped_batches} so far)")
    return "  ".join(parts)
