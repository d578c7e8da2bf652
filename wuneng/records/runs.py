"""The layout of a run directory.

runs/<name>/recipe.yaml          resolved; training from it repeats the run
            environment.json     versions, device, command line, git commit
            results.json         the arms side by side; there once the run is complete
            report.html          the page about it, with report.json and report-data/
            curves.png, .svg     the learning curves, likewise written last
            checksums.json       of recipe.yaml and results.json
            learned-tokenizer/   where data.tokenizer is learned from a stream, which may change
            <arm>[/seed-<n>]/metrics.jsonl
            <arm>[/seed-<n>]/checkpoints/step-<n>/
            <arm>[/seed-<n>]/model/
            <arm>[/seed-<n>]/rows.json       what each row of the end evaluation scored
            <arm>[/seed-<n>]/result.json     the arm's figures; there once the arm is complete
            <arm>[/seed-<n>]/failed.json     why it could not be trained
            <arm>[/seed-<n>]/.claim-<n>      who trains it at this moment
            <arm>[/seed-<n>]/checksums.json  of the arm's files above; exports have their own
            <arm>[/seed-<n>]/start/          the converted source, where a recipe has init_from
            <arm>[/seed-<n>]/teacher/        the converted teacher, where it has distill
runs/latest -> <name>
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from wuneng.errors import InputError
from wuneng.records.claim import CLAIM
from wuneng.records.files import disk_errors
from wuneng.records.leftovers import is_leftover_name, remove_abandoned
from wuneng.records.lock import LOCK, is_locked
from wuneng.records.places import usable_directory

_PARTIAL_LINK = re.compile(r"\.latest\.\d+|\.latest\.[0-9a-f]+\.partial")

__all__ = ["RUNS_ROOT", "ArmDirectory", "RunDirectory"]

#: Where runs go unless they are told otherwise, under the current directory.
RUNS_ROOT = Path("runs")


@dataclass(frozen=True)
class ArmDirectory:
    """Where one arm, trained from one seed, keeps its files."""

    path: Path

    @property
    def metrics(self) -> Path:
        """One JSON object per logged step."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Holds ``step-<n>`` directories."""
        return self.path / "checkpoints"

    @property
    def start(self) -> Path:
        """What the arm starts from, where that had to be converted."""
        return self.path / "start"

    @property
    def teacher(self) -> Path:
        """What the arm learns from, where that had to be converted."""
        return self.path / "teacher"

    @property
    def rows(self) -> Path:
        """What each row of the end evaluation scored; there once the arm is complete."""
        return self.path / "rows.json"

    @property
    def result(self) -> Path:
        """The arm's figures; written last, so that it marks the arm as complete."""
        return self.path / "result.json"

    @property
    def failed(self) -> Path:
        """Why it could not be trained, for other processes that work on the run."""
        return self.path / "failed.json"

    @property
    def model(self) -> Path:
        """The trained model in transformers format; there once the arm is complete."""
        return self.path / "model"


@dataclass(frozen=True)
class RunDirectory:
    """Where a run keeps its files. Making one of these touches no disk."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @classmethod
    def create(cls, name: str, runs_root: Path = RUNS_ROOT, *, reuse: bool = False) -> RunDirectory:
        """Make ``runs_root/<name>``, or ``<name>-2``, ``<name>-3``... where that is taken.

        Args:
            reuse: take a directory that is empty, or in which a killed process left nothing but
                leftovers. The caller locks it, and chooses again where another was faster.

        Raises:
            InputError: no directory can be made there.
            DiskError: the disk is full.
        """
        usable_directory(Path(runs_root), "--out")
        with disk_errors(runs_root / name):
            for candidate in _names(name):
                run = cls(runs_root / candidate)
                if reuse and run.is_abandoned:
                    return run
                with suppress(FileExistsError):
                    run.path.mkdir()
                    return run
        raise AssertionError("the names do not end")

    @property
    def learned_tokenizer(self) -> Path:
        """The tokenizer of all its units, where it is learned from text that is not kept."""
        return self.path / "learned-tokenizer"

    @property
    def is_abandoned(self) -> bool:
        """Whether it holds nothing, or only what a process left that was killed at its start."""
        if self.path.is_symlink() or not self.path.is_dir() or is_locked(self.path):
            return False
        own = (LOCK, self.environment.name)
        return all(
            p.name in own or is_leftover_name(p.name) or p.name.startswith(CLAIM)
            for p in self.path.iterdir()
        )

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def environment(self) -> Path:
        """Versions, device, command line, git commit."""
        return self.path / "environment.json"

    @property
    def results(self) -> Path:
        """The arms side by side."""
        return self.path / "results.json"

    def arm(self, name: str, seed: int | None = None) -> ArmDirectory:
        """The directory of an arm; ``seed`` only where the recipe has several."""
        arm = self.path / name
        return ArmDirectory(arm if seed is None else arm / f"seed-{seed}")

    def update_latest(self, runs_root: Path = RUNS_ROOT) -> None:
        """Point ``runs_root/latest`` here, atomically. DiskError when the disk refuses."""
        link = Path(runs_root) / "latest"
        here, root = self.path.resolve(), Path(runs_root).resolve()
        target = here.relative_to(root) if here.is_relative_to(root) else here
        with disk_errors(link):
            link.parent.mkdir(parents=True, exist_ok=True)
            if link.is_symlink() and link.readlink() == target:
                return
            if link.exists() and not link.is_symlink():
                raise InputError(f"{link} is no link to a run, as it should be; rename it")
            remove_abandoned(link.parent, _PARTIAL_LINK)
            partial = link.with_name(f".latest.{secrets.token_hex(8)}.partial")
            partial.symlink_to(target, target_is_directory=True)
            # Gone already: another run removed it as left over, and sets the link itself.
            with suppress(FileNotFoundError):
                partial.replace(link)


def _names(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}-{number}"
        number += 1
