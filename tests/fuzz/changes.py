"""What the kinds of files share: a copy, a mutated file, the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.fuzz.mutation import mutated_bytes, mutated_json

__all__ = ["Call", "change_bytes", "change_json", "command", "copy", "forget_checksums"]


Call = Callable[[], object]


def command(*arguments: str) -> None:
    from wuneng_cli.main import app

    app(args=list(arguments), prog_name="wuneng")


def copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True, symlinks=True)


def change_bytes(random: Random, file: Path) -> None:
    file.write_bytes(mutated_bytes(random, file.read_bytes()))


def change_json(random: Random, file: Path) -> None:
    value = mutated_json(random, json.loads(file.read_bytes()))
    plain = random.random() < 0.5
    try:
        content = json.dumps(value, ensure_ascii=plain).encode("utf-8", "surrogatepass")
    except RecursionError:  # nested once more within the nested: too deep for the encoder itself
        content = b"[" * 2000 + b"]" * 2000
    file.write_bytes(mutated_bytes(random, content, 1) if random.random() < 0.1 else content)


def forget_checksums(random: Random, directory: Path) -> None:
    """Mostly: with them, what stands in a damaged file is hardly ever looked at."""
    if random.random() < 0.8:
        for file in directory.rglob("checksums.json"):
            file.unlink()
