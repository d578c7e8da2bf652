"""The errors that a user is told about in one message, without a traceback.

    WuNengError                 exit code 1
    ├── InputError              exit code 2: what the user gave us is wrong
    │   ├── RecipeError         a recipe file or a --set override
    │   ├── DataError           text, token or evaluation files
    │   ├── ModelError          a model or run directory, or its configuration
    │   ├── DamagedError        a finished file is not what was written
    │   ├── BackendError        an operator's implementation that is unknown, or cannot be had here
    │   └── TaskError           an evaluation task that is unknown or not available
    └── RunError                exit code 1: something failed while running
        ├── NonFiniteError      a loss or gradient became NaN or infinite
        ├── MissingProcess      of several that train together, one is gone or hangs
        ├── CheckpointError     no usable checkpoint, or one that does not fit the run
        └── DiskError           the disk is full or refuses to be written

A message names the field, flag or file (and line), what was expected, what came instead and,
where one is close, the nearest known name. Anything else that is raised is a bug in this package
and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

__all__ = [
    "BackendError",
    "CheckpointError",
    "DamagedError",
    "DataError",
    "DiskError",
    "InputError",
    "MissingProcess",
    "ModelError",
    "NonFiniteError",
    "RecipeError",
    "RunError",
    "TaskError",
    "WuNengError",
    "file_errors",
    "nearest",
    "reason",
    "shortened",
]

#: Longer names are like nothing; comparing them would take minutes.
_LONGEST_COMPARED = 200

#: A file's values are quoted in messages; whoever quotes too much of them stops here.
_LONGEST_MESSAGE = 8000


class WuNengError(Exception):
    """Base of every error whose message is meant for the user, and of bounded length."""

    exit_code = 1

    def __str__(self) -> str:
        return shortened(super().__str__(), _LONGEST_MESSAGE)


class InputError(WuNengError):
    """The user's input is wrong; running again unchanged fails again."""

    exit_code = 2


class RecipeError(InputError):
    """A recipe file or a ``--set`` override is malformed."""


class DataError(InputError):
    """A data file or data set is missing, unreadable, too short or of the wrong kind."""


class ModelError(InputError):
    """A model or run directory is missing or is not what it should be."""


class DamagedError(InputError):
    """A finished record or export is not what was written: damaged on the disk, or edited."""


class BackendError(InputError, ValueError):
    """An operator cannot be computed by the implementation that was asked for."""


class TaskError(InputError):
    """An evaluation task is unknown, or its data cannot be had."""


class RunError(WuNengError):
    """The input was fine; the run failed."""

    exit_code = 1


class NonFiniteError(RunError):
    """The loss or the gradient norm is NaN or infinite."""


class MissingProcess(RunError):
    """A process that the others wait for is gone, or does not come to where they are."""


class CheckpointError(RunError):
    """No checkpoint can be used, or it belongs to another run."""


class DiskError(RunError):
    """The disk is full, read-only or over quota."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` with a leading blank, or an empty string when nothing is close.

    Letter case and ``-``/``_`` are ignored while comparing; the known spelling is returned.
    """
    if len(name) > _LONGEST_COMPARED:
        return ""
    spellings = {_folded(candidate): candidate for candidate in known}
    close = difflib.get_close_matches(_folded(name), spellings, n=1, cutoff=0.6)
    return f" Did you mean '{spellings[close[0]]}'?" if close else ""


def shortened(text: str, limit: int = 80) -> str:
    """``text``, or its first ``limit`` characters and ``...``."""
    return text if len(text) <= limit else f"{text[:limit]}..."


def reason(error: BaseException, limit: int = 300) -> str:
    """What an error says, as one line of bounded length; its class where it says nothing.

    That is its first line, and the next ones where it only announces them.
    """
    lines = filter(None, (line.strip() for line in str(error).splitlines()))
    said = next(lines, type(error).__name__)
    while said.endswith(":") and (more := next(lines, "")):
        said = f"{said} {more}"
    return shortened(said, limit)


@contextmanager
def file_errors(what: str, kind: type[WuNengError]) -> Iterator[None]:
    """Whatever a library raises over a file that the user gave, as one error of ``kind``.

    ``what`` names the file and what it should have been; the library's first line follows. Use it
    around the reading of a file alone: elsewhere it would hide bugs of this package. Rust's panics
    (tokenizers, safetensors) are no ``Exception``, but they are the file's fault all the same.
    """
    try:
        yield
    except (WuNengError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise kind(f"{what}: {reason(error)}") from error


def _folded(name: str) -> str:
    return name.lower().replace("-", "_")
