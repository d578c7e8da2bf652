"""What dependencies say in passing stays out of the user's sight: warnings, log lines, bars.

A warning of transformers that an argument will be renamed is for the developers of this package.
Errors come through, and so does everything that this package itself says, what wandb warns of
(an upload that failed), and torch's word that an operation cannot be repeated bit for bit, which is
made one line for each operation. ``--verbose`` or the
environment variable ``WUNENG_VERBOSE=1`` lets everything through, and Python's own ``-W`` and
``PYTHONWARNINGS`` decide about warnings where they are given.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["lift", "silenced"]

#: Read when the packages are imported, which is after this.
_VARIABLES = {
    **dict.fromkeys(("TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY", "HF_HUB_VERBOSITY"), "error"),
    **dict.fromkeys(("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"), "1"),
    # Warnings that torch's C++ code writes past Python.
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "KINETO_LOG_LEVEL": "99",  # torch's profiler: two lines on stderr each time
}
_OURS = ("wuneng", "wuneng_cli")
_WARNS_USERS = ("wandb",)
_NOT_REPEATABLE = " does not have a deterministic implementation"
_call_handlers = logging.Logger.callHandlers
_lifts: list[Any] = []


@contextmanager
def silenced() -> Iterator[None]:
    """Dependencies are silent in the body, unless the environment or :func:`lift` lets them."""
    if os.environ.get("WUNENG_VERBOSE", "0") not in ("", "0"):
        yield
        return
    show = warnings.showwarning
    given = [name for name in _VARIABLES if name not in os.environ]
    os.environ.update({name: _VARIABLES[name] for name in given})
    logging.Logger.callHandlers = _errors_and_ours  # type: ignore[method-assign, assignment]
    drop = _dropping()
    if not sys.warnoptions:
        warnings.showwarning = drop

    def restore() -> None:
        logging.Logger.callHandlers = _call_handlers  # type: ignore[method-assign]
        if warnings.showwarning is drop:
            warnings.showwarning = show
        for name in given:
            os.environ.pop(name, None)

    _lifts.append(restore)
    try:
        yield
    finally:
        restore()
        _lifts.remove(restore)


def lift() -> None:
    """Let everything through from now on."""
    for restore in _lifts:
        restore()


def _errors_and_ours(logger: logging.Logger, record: logging.LogRecord) -> None:
    package = record.name.partition(".")[0]
    least = logging.WARNING if package in _WARNS_USERS else logging.ERROR
    if record.levelno >= least or package in _OURS:
        _call_handlers(logger, record)


def _dropping() -> Callable[..., None]:
    """In the place of ``warnings.showwarning``: this package warns through its display instead."""
    told: set[str] = set()

    def drop(message: Any, *_: Any, **__: Any) -> None:
        operation, found, _rest = str(message).partition(_NOT_REPEATABLE)
        if found and operation not in told:
            told.add(operation)
            from wuneng_cli.render import print_line

            print_line(
                f"warning: torch's {operation} is not deterministic: a run repeated or resumed "
                "may differ in the last bits",
                stderr=True,
            )

    return drop
