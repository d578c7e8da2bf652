"""Texts to train on and to score, and finished runs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from tests.fuzz.changes import Call, change_bytes, change_json, command, copy, forget_checksums
from tests.fuzz.mutation import mutated_bytes, mutated_json, mutated_text

if TYPE_CHECKING:
    from tests.fuzz.kinds import Originals

__all__ = ["Data", "Runs"]


class Data:
    """Mutated text, JSON lines, archives and Parquet files for training and for evaluation."""

    name = "data"

    def __init__(self, originals: Originals) -> None:
        self.originals = originals

    def case(self, random: Random, directory: Path) -> Call:
        from wuneng.data.sources import FileSource

        original = random.choice(sorted((self.originals.place / "data").iterdir()))
        content = original.read_bytes()
        if original.suffix == ".gz" and random.random() < 0.7:
            content = gzip.compress(mutated_bytes(random, gzip.decompress(content)), 1)
        elif original.suffix == ".jsonl" and random.random() < 0.5:
            content = _changed_rows(random, content)
        else:
            content = mutated_bytes(random, content)
        file = directory / "texts" / original.name
        file.parent.mkdir()
        file.write_bytes(content)
        if original.name.startswith("documents"):
            return lambda: list(FileSource([str(file)], "data.train", "text", None).documents())
        return lambda: _evaluation_rows(file.parent, directory / "workspace")


class Runs:
    """A finished run with a mutated record: trained on, looked for models, written with."""

    name = "run"

    def __init__(self, originals: Originals) -> None:
        self.originals = originals

    def case(self, random: Random, directory: Path) -> Call:
        from wuneng.evaluate.choice import choose_models

        run = directory / "run"
        copy(self.originals.models["run"], run)
        files = [p for p in sorted(run.rglob("*")) if p.is_file() and not p.is_symlink()]
        records = [p for p in files if p.suffix in (".json", ".jsonl", ".yaml")]
        file = random.choice(records if random.random() < 0.8 else files)
        if file.suffix == ".yaml":
            text = mutated_text(random, file.read_text("utf-8"))
            file.write_bytes(text.encode("utf-8", "surrogatepass"))
        elif file.suffix == ".json":
            change_json(random, file)
        else:
            change_bytes(random, file)
        forget_checksums(random, run)
        recipe = str(self.originals.place / "tiny.yaml")
        if random.random() < 0.6:
            return lambda: choose_models("run", None)
        if random.random() < 0.3:
            (run / "results.json").unlink(missing_ok=True)
        return lambda: command("train", recipe, "--out", "run", "--quiet")


def _changed_rows(random: Random, content: bytes) -> bytes:
    lines = content.splitlines()
    at = random.randrange(len(lines))
    lines[at] = json.dumps(mutated_json(random, json.loads(lines[at]))).encode("ascii")
    return b"\n".join(lines) + b"\n"


def _evaluation_rows(root: Path, workspace: Path) -> None:
    from wuneng.evaluate.local_data import LocalDirectory
    from wuneng.evaluate.local_files import converted_rows

    workspace.mkdir()
    for file in LocalDirectory(root, workspace).files:
        for _ in converted_rows(file):
            pass
