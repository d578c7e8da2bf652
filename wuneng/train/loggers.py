"""TensorBoard, Weights & Biases and CSV, where the recipe asks for them under ``loggers``."""

from __future__ import annotations

import importlib.util
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from wuneng.errors import InputError
from wuneng.foreign.regular import read_regular_text
from wuneng.records import write_text_atomic
from wuneng.train.csv_log import CsvLogger
from wuneng.train.flat_rows import numbers

__all__ = ["Logger", "check_installed", "open_loggers"]

_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}


class Logger(Protocol):
    """Receives the rows of metrics.jsonl."""

    def begin(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Before the first: the rows of the steps that a resumed run does not take again."""
        ...

    def log(self, row: Mapping[str, Any]) -> None:
        """One row: numbers and words, and mappings of numbers as ``validation``."""
        ...

    def close(self) -> None:
        """Flush what is buffered."""
        ...


def check_installed(names: Sequence[str]) -> None:
    """Raise InputError, naming what to install, before any training is done in vain."""
    for name in names:
        if name in _PACKAGES and importlib.util.find_spec(_PACKAGES[name]) is None:
            raise InputError(
                f"loggers: {name!r} needs a package that is not installed. "
                f"Install it with: pip install {_PACKAGES[name]}, or remove it from the recipe."
            )


def open_loggers(names: Sequence[str], directory: Path, title: str) -> list[Logger]:
    """The loggers called ``names`` for one arm, writing under its ``directory``."""
    check_installed(names)
    makers: dict[str, Callable[[Path, str], Logger]] = {
        "tensorboard": TensorBoardLogger,
        "wandb": WandbLogger,
        "csv": lambda directory, title: CsvLogger(directory),
    }
    return [makers[name](directory, title) for name in names]


class TensorBoardLogger:
    """Event files under ``<arm>/tensorboard``."""

    def __init__(self, directory: Path, title: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._open: Callable[..., Any] = partial(SummaryWriter, str(directory / "tensorboard"))
        self._writer: Any = None

    def begin(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Lines of later steps, which are taken again, are hidden."""
        if rows:
            self._writer = self._open(purge_step=rows[-1]["step"] + 1)

    def log(self, row: Mapping[str, Any]) -> None:
        """One scalar per number."""
        self._writer = self._writer or self._open()
        for name, value in numbers(row).items():
            self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Flush and close the event file."""
        if self._writer is not None:
            self._writer.close()


class WandbLogger:
    """A Weights & Biases run per arm; its own environment variables say where it goes."""

    def __init__(self, directory: Path, title: str) -> None:
        import wandb

        # A name of the arm's own, kept with it: a resumed run continues the same chart.
        name = directory / "wandb.id"
        identity = read_regular_text(name) if name.exists() else secrets.token_hex(8)
        write_text_atomic(name, identity)
        self._run = wandb.init(
            project="wuneng", name=title, id=identity, resume="allow", dir=str(directory)
        )

    def begin(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Steps that are taken again have the figures they had: the service keeps the first."""

    def log(self, row: Mapping[str, Any]) -> None:
        """One scalar per number."""
        self._run.log(numbers(row), step=row["step"])

    def close(self) -> None:
        """Mark the run as finished."""
        self._run.finish()
