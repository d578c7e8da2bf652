"""A command run in this process as a user runs it: its exit code and what it printed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from wuneng_cli.main import app


def outcome(*arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and error; an exception that no user should see is raised."""
    result = CliRunner().invoke(app, arguments)
    unexpected = result.exception
    if unexpected is not None and not isinstance(unexpected, SystemExit):
        raise unexpected
    return result.exit_code, result.stdout, result.stderr


def answer(*arguments: str) -> dict[str, Any]:
    """What a command that succeeds prints with ``--json``."""
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def undo_the_end(run: Path, arms: Iterable[str], step: int) -> None:
    """As if these arms of a finished run had been stopped before its last ``step``."""
    for arm in arms:
        shutil.rmtree(run / arm / "checkpoints" / f"step-{step}")
        shutil.rmtree(run / arm / "model")
        for name in ("result.json", "rows.json", "checksums.json"):
            (run / arm / name).unlink()
    for name in ("results.json", "checksums.json"):
        (run / name).unlink()
