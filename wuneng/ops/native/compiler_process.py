"""Runs the C compiler with patience, but not without end."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import tempfile
from contextlib import suppress
from functools import cache

from wuneng.foreign.text import shown_line

__all__ = ["reason", "run_compiler"]

#: Seconds that one call of the compiler may take, and after which a slow one is announced.
_PATIENCE, _SILENCE = 20.0, 4.0
_log = logging.getLogger(__name__)


def run_compiler(call: list[str]) -> None:
    """Run the compiler ``call``; whatever it has started ends with it.

    Raises:
        subprocess.CalledProcessError: it failed; its output is the error's.
        subprocess.TimeoutExpired: it did not end in time.
    """
    with tempfile.TemporaryFile() as output:  # a pipe stays open as long as any grandchild lives
        process = subprocess.Popen(
            call,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = _wait(process, call[0])
        finally:
            _end(process)
        if status:
            output.seek(0)
            text = output.read(1 << 16).decode("utf-8", "replace")
            raise subprocess.CalledProcessError(status, call, stderr=text)


def _wait(process: subprocess.Popen[bytes], name: str) -> int:
    try:
        return process.wait(_SILENCE)
    except subprocess.TimeoutExpired:
        _announce(name)
    return process.wait(_PATIENCE - _SILENCE)


@cache
def _announce(name: str) -> None:
    """Once in a process: kernels for every head size are built by several calls."""
    _log.warning(
        "waiting for %s, which builds the C kernels (for %g s at most)",
        shown_line(name),
        _PATIENCE,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(OSError):  # nobody is left
        if hasattr(os, "killpg"):  # what a wrapper left in the background outlives the wrapper
            os.killpg(process.pid, signal.SIGKILL)
    with suppress(OSError):
        process.kill()
    process.wait()


def reason(error: Exception) -> str:
    """One line of why: the compiler's first complaint, or the error itself."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"{shown_line(error.cmd[0])} did not end within {_PATIENCE:g} s"
    lines = [line.strip() for line in (getattr(error, "stderr", None) or str(error)).splitlines()]
    lines = [line for line in lines if line] or [type(error).__name__]
    chosen = next((line for line in lines if "error" in line.lower()), lines[0])
    return shown_line(chosen)[:200]
