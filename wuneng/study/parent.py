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
from wuneng.records import RunDirectory, write_sealed_json
from wuneng.train.opening import Opening, content_of, not_begun_in_vain, settled

__all__ = ["Parent", "open_parent"]


@dataclass(frozen=True)
class Parent:
    """A sweep or study to train, perhaps together with other commands."""

    directory: RunDirectory
    written: WrittenRecipe
    opening: Opening
    results_before: bytes | None
    """results.json as it was when this command came."""

    @property
    def recipe(self) -> Recipe:
        """What was written, resolved."""
        return self.written.recipe

    def write_results(self, record: Mapping[str, Any], *beside: str) -> dict[str, Any]:
        """results.json, sealed with the recipe and what is ``beside`` it; where another command has
        written it meanwhile, that one's."""
        directory = self.directory

        def write() -> dict[str, Any]:
            names = (directory.recipe.name, *beside)
            write_sealed_json(directory.results, record, beside=names)
            return dict(record)

        return self.opening.written_once(directory, self.results_before, write)

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
    with opening.claimed(recipe, out, resume, runs_root) as run:
        directory, text = run.directory, None
        if run.stored is None:
            fixed = settled(recipe, min(len(devices), units) * opening.workers.together)
            text = written.text(
                {"device": fixed.device, "training.num_threads": fixed.training.num_threads}
            )
        with not_begun_in_vain(directory, run.stored is None):
            before = content_of(directory.results)
            opening.begin_records(run, text)
            yield Parent(directory, read_written(directory.recipe), opening, before)
