"""The directory of a sweep or study: what was written and when, and the runs below it.

Its recipe.yaml is the recipe as it was written, with the device and the threads that the machine
decided: resolved, it could not be varied any more. Each run below it is an ordinary one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wuneng.recipe import Recipe, WrittenRecipe, read_written
from wuneng.recipe.schema import LONGEST_NAME
from wuneng.records import RunDirectory
from wuneng.train.opening import Opening, not_begun_in_vain, open_records, settled
from wuneng.train.resume import claimed_run

__all__ = ["Parent", "open_parent"]


@dataclass(frozen=True)
class Parent:
    """A sweep or study that nobody else trains."""

    directory: RunDirectory
    written: WrittenRecipe
    new: bool
    """Begun by this command."""

    @property
    def recipe(self) -> Recipe:
        """What was written, resolved."""
        return self.written.recipe

    def variant(self, name: str, values: Mapping[str, Any], why: str = "sweep") -> Recipe:
        """The recipe of one run below, called after its directory ``name``."""
        whole = f"{self.recipe.name}-{name.replace('/', '-')}"[-LONGEST_NAME:].lstrip("-._")
        return self.written.variant({**values, "name": whole}, why=why)


@contextmanager
def open_parent(
    written: WrittenRecipe,
    out: Path | None,
    resume: str,
    runs_root: Path,
    opening: Opening,
    units: int,
) -> Iterator[Parent]:
    """A new sweep or study, or the one to continue, locked while the block runs.

    Args:
        units: how many trainings there will be at most at the same time.

    Raises:
        InputError: the recipe does not fit this machine, or what is to be resumed.
        DamagedError, InUse, DiskError: as ``claimed_run``.
    """
    recipe = written.recipe
    devices = opening.workers.devices(recipe.device)
    with claimed_run(recipe, out, resume, runs_root, check=opening.check) as (directory, stored):
        text = None
        if stored is None:
            fixed = settled(recipe, min(len(devices), units))
            text = written.text(
                {"device": fixed.device, "training.num_threads": fixed.training.num_threads}
            )
        with not_begun_in_vain(directory, stored is None):
            open_records(directory, text, opening.command_line, opening.display)
            yield Parent(directory, read_written(directory.recipe), stored is None)
