"""How much of a text has been tokenised, as a bar on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from wuneng.foreign import shown_line

__all__ = ["ReadingBar"]


class ReadingBar:
    """A bar with the share and the time that is left; it is gone once closed."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}", markup=False), BarColumn())
        self._progress = Progress(
            *columns, TaskProgressColumn(), TimeRemainingColumn(), console=console, transient=True
        )
        self._task = self._progress.add_task("", total=1.0)
        self._progress.start()

    def show(self, what: str, share: float) -> None:
        """``share``, 0 to 1, of ``what`` is done."""
        text = f"tokenising {shown_line(what)}"
        self._progress.update(self._task, description=text, completed=share)

    def close(self) -> None:
        """Take it away."""
        self._progress.stop()
