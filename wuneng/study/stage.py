"""One stage of a study, tuning or comparing: its runs are opened and trained together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wuneng.recipe.schema import LONGEST_NAME
from wuneng.study.parent import Parent
from wuneng.study.planning import variant_of
from wuneng.study.rungs import Rung
from wuneng.train.failures import UnitsFailed
from wuneng.train.opening import Opening, OpenRun, open_run
from wuneng.train.pending import train_pending

__all__ = ["Stage"]


@dataclass(frozen=True)
class Stage:
    """Opens runs below a study, and trains what is left of them."""

    parent: Parent
    opening: Opening
    runs_root: Path

    @contextmanager
    def open(
        self, rung: Rung, place: str, values: Mapping[str, Any], *, part: str
    ) -> Iterator[OpenRun]:
        """The run in ``place`` below the study, new or to be continued."""
        whole = f"{self.parent.recipe.name}-{place.replace('/', '-')}"
        named = {**values, "name": whole[-LONGEST_NAME:].lstrip("-._")}
        recipe = variant_of(self.parent.written, rung, named, part=part)
        directory = self.parent.directory.path / place
        with open_run(
            recipe, directory, "auto", self.runs_root, self.opening, f"{place}: "
        ) as opened:
            yield opened

    def train(self, runs: Sequence[OpenRun]) -> None:
        """Train what is left. An arm whose loss is not finite any more is left out, and told of.

        Raises:
            UnitsFailed: something else failed; the rest was trained all the same.
            Interrupted, InputError, DiskError, CheckpointError: as ``train_pending``.
        """
        pending = [(run, run.pending()) for run in runs]
        failures = train_pending(
            pending, self.opening, lambda: self.parent.directory.update_latest(self.runs_root)
        )
        broken = [failure for failure in failures if not failure.diverged]
        if broken:
            units = sum(len(units) for _, units in pending)
            raise UnitsFailed(broken, units, self.parent.directory.path)

    def note(self, message: str) -> None:
        """A line for whoever watches."""
        self.opening.display.note(message)
