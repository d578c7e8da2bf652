"""What a person sees while training: a live panel on a terminal, plain lines elsewhere, or nothing.

The loop only knows the ``Display`` protocol. Warnings (an unusable checkpoint, a stop request)
come through in every mode.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Protocol, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from wuneng.foreign import print_line, shown_line
from wuneng.foreign.terminal import PlainConsole

__all__ = ["Display", "PanelDisplay", "PlainDisplay", "Progress", "QuietDisplay", "make_display"]


_WIDE = 84
"""Columns from which the panel has three: name, figure, and what stands beside it."""


@dataclass(frozen=True)
class Progress:
    """The state of one arm after a step."""

    arm: str
    seed: int
    step: int
    total_steps: int
    loss: float
    """Nats per scored token."""
    learning_rate: float
    grad_norm: float
    tokens_per_second: float
    seconds_left: float
    logged: bool
    """Whether this step has a line in metrics.jsonl."""
    validation: dict[str, float] = field(default_factory=dict)
    """The figures measured at this step, if any were."""


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

    def warn(self, message: str) -> None:
        """One line."""
        print_line(f"warning: {message}", file=self._stream)

    def close(self) -> None:
        """Nothing to undo."""


class PlainDisplay(QuietDisplay):
    """One line for every logged step: for pipes, files and logs of a cluster."""

    def stepped(self, progress: Progress) -> None:
        """A line if the step is logged."""
        if progress.logged:
            print_line(_line(progress), file=self._stream)

    def note(self, message: str) -> None:
        """One line."""
        print_line(message, file=self._stream)


class PanelDisplay:
    """A panel that redraws itself a few times a second."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._validation: dict[str, float] = {}
        self._live: Live | None = None

    def stepped(self, progress: Progress) -> None:
        """Remember the step; the panel's own clock draws it."""
        if self._progress is not None and self._progress.arm != progress.arm:
            self._validation = {}
        self._progress = progress
        self._validation = progress.validation or self._validation
        if self._live is None:
            self._live = Live(
                console=self._console,
                get_renderable=self._render,
                refresh_per_second=4,
                transient=True,
            )
            self._live.start()

    def note(self, message: str) -> None:
        """A line above the panel."""
        self._console.print(message, highlight=False, markup=False)

    def warn(self, message: str) -> None:
        """A yellow line above the panel."""
        self._console.print(f"warning: {message}", style="yellow", highlight=False, markup=False)

    def close(self) -> None:
        """Take the panel away."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _render(self) -> Panel:
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
                f"{_short(progress.tokens_per_second)} tokens/s",
            ),
            ("time left", _clock(progress.seconds_left), ""),
            *(("validation", f"{value:.4f}", name) for name, value in self._validation.items()),
        ]
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
        progress.arm,
        f"step {progress.step}/{progress.total_steps}",
        f"loss {progress.loss:.4f}",
        f"lr {progress.learning_rate:.2e}",
        f"grad {progress.grad_norm:.3g}",
        f"{_short(progress.tokens_per_second)} tok/s",
        f"eta {_clock(progress.seconds_left)}",
    ]
    parts += [f"{name} {value:.4f}" for name, value in progress.validation.items()]
    return "  ".join(parts)


def _short(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f}{unit}"
    return f"{value:.0f}"


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"
