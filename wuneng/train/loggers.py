"""TensorBoard and Weights & Biases, where the recipe asks for them under ``loggers``."""

from __future__ import annotations

import importlib.util
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from wuneng.errors import InputError
from wuneng.foreign.regular import read_regular_text
from wuneng.records import write_text_atomic

__all__ = ["Logger", "check_installed", "open_loggers"]

_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}


class Logger(Protocol):
    """Receives the rows of metrics.jsonl."""

    def log(self, row: Mapping[str, Any]) -> None:
        """One row: flat numbers, plus ``validation``, a mapping of quality names to numbers."""
        ...

    def close(self) -> None:
        """Flush what is buffered."""
        ...


def check_installed(names: Sequence[str]) -> None:
    """Raise InputError, naming what to install, before any training is done in vain."""
    for name in names:
        if importlib.util.find_spec(_PACKAGES[name]) is None:
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
    }
    return [makers[name](directory, title) for name in names]


class TensorBoardLogger:
    """Event files under ``<arm>/tensorboard``."""

    def __init__(self, directory: Path, title: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory / "tensorboard"))

    def log(self, row: Mapping[str, Any]) -> None:
        """One scalar per number."""
        for name, value in _scalars(row).items():
            self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Flush and close the event file."""
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

    def log(self, row: Mapping[str, Any]) -> None:
        """One scalar per number."""
        self._run.log(_scalars(row), step=row["step"])

    def close(self) -> None:
        """Mark the run as finished."""
        self._run.finish()


def _scalars(row: Mapping[str, Any]) -> dict[str, float]:
    flat = {f"validation/{name}": value for name, value in row.get("validation", {}).items()}
    plain = {k: v for k, v in row.items() if isinstance(v, int | float) and k != "step"}
    return {**plain, **flat}
