"""The errors that a user is told about in one message, without a traceback.

    WuNengError                 exit code 1
    ├── InputError              exit code 2: what the user gave us is wrong
    │   ├── RecipeError         a recipe file or a --set override
    │   ├── DataError           text, token or evaluation files
    │   ├── ModelError          a model or run directory, or its configuration
    │   ├── DamagedError        a finished file is not what was written
    │   └── TaskError           an evaluation task that is unknown or not available
    └── RunError                exit code 1: something failed while running
        ├── NonFiniteError      a loss or gradient became NaN or infinite
        ├── CheckpointError     no usable checkpoint, or one that does not fit the run
        └── DiskError           the disk is full or refuses to be written

A message names the field, flag or file (and line), what was expected, what came instead and,
where one is close, the nearest known name. Anything else that is raised is a bug in this package
and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "DamagedError",
    "DataError",
    "DiskError",
    "InputError",
    "ModelError",
    "NonFiniteError",
    "RecipeError",
    "RunError",
    "TaskError",
    "WuNengError",
    "nearest",
]


class WuNengError(Exception):
    """Base of every error whose message is meant for the user."""

    exit_code = 1


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


class TaskError(InputError):
    """An evaluation task is unknown, or its data cannot be had."""


class RunError(WuNengError):
    """The input was fine; the run failed."""

    exit_code = 1


class NonFiniteError(RunError):
    """The loss or the gradient norm is NaN or infinite."""


class CheckpointError(RunError):
    """No checkpoint can be used, or it belongs to another run."""


class DiskError(RunError):
    """The disk is full, read-only or over quota."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` with a leading blank, or an empty string when nothing is close.

    Letter case and ``-``/``_`` are ignored while comparing; the known spelling is returned.
    """
    spellings = {_folded(candidate): candidate for candidate in known}
    close = difflib.get_close_matches(_folded(name), spellings, n=1, cutoff=0.6)
    return f" Did you mean '{spellings[close[0]]}'?" if close else ""


def _folded(name: str) -> str:
    return name.lower().replace("-", "_")
