"""Ctrl-C and SIGTERM: finish the step, save, leave. A second Ctrl-C leaves at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from types import FrameType, TracebackType
from typing import Any

from wuneng.errors import RunError

__all__ = ["Interrupted", "StopSignals", "how_to_resume", "stop_warning"]


class Interrupted(RunError):
    """A signal ended the run. The exit code is the shell's 128 + signal number (130, 143)."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


class StopSignals:
    """While the context is open, the first SIGINT or SIGTERM only sets ``requested``.

    ``on_request(signal_name)`` is told about it. A second SIGINT raises ``Interrupted``, which
    names ``what``, wherever the program is; checkpoints are written beside their final place, so
    none can be torn by it.
    Outside the main thread signals cannot be caught and the context does nothing.
    """

    def __init__(
        self, on_request: Callable[[str], None] = lambda name: None, what: str = "the run"
    ) -> None:
        self._what = what
        self.requested: int | None = None
        self._on_request = on_request
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None and number == signal.SIGINT:
            raise Interrupted(f"{self._what} stopped at once; the last checkpoint stands", number)
        if self.requested is None:
            self.requested = number
            self._on_request(signal.Signals(number).name)


def how_to_resume(run_directory: Path) -> str:
    """The sentence that tells a user how to go on."""
    recipe, run = (quote(str(path)) for path in (run_directory / "recipe.yaml", run_directory))
    return f"Run the same command again to continue, or: wuneng train {recipe} --resume {run}"


def stop_warning(name: str) -> str:
    """What is said when the first signal, ``name``, comes."""
    return f"{name}: finishing this step and saving; Ctrl-C (again) stops at once"
