"""A run made ready to train: its directory claimed, what the machine decides settled, its records
begun.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wuneng.data.tokenizer import check_tokenizer
from wuneng.device import environment, pick_device
from wuneng.distributed.processes import ALONE, Processes
from wuneng.errors import DamagedError, DataError, InputError
from wuneng.recipe import Recipe, TextData, dump_recipe
from wuneng.records import RunDirectory, read_json, write_json, write_text_atomic
from wuneng.records import verify as verify_files
from wuneng.records.atomic import remove_leftovers
from wuneng.records.claim import claimed
from wuneng.records.lock import LOCK
from wuneng.train.arm_run import Session
from wuneng.train.display import Display
from wuneng.train.loggers import check_installed
from wuneng.train.lora import check_peft
from wuneng.train.outline import RunOutline
from wuneng.train.plan import RunPlan, plan_run
from wuneng.train.results import write_results
from wuneng.train.resume import ClaimedRun, claimed_run
from wuneng.train.starting_point import Sources
from wuneng.train.step_range import StepRange
from wuneng.train.units import Unit, unfinished
from wuneng.train.workers import Workers

__all__ = ["OpenRun", "Opening", "not_begun_in_vain", "open_records", "open_run", "settled"]


@dataclass(frozen=True)
class Opening:
    """What a command brings to the runs that it opens."""

    display: Display
    command_line: Sequence[str] | None
    """Goes into environment.json; None: this process's."""
    sources: Sources | None
    check: bool
    """Compare files of finished arms with their checksums."""
    workers: Workers
    processes: Processes = ALONE
    """That train each unit together."""
    profile: StepRange | None = None
    """Steps of each unit that are profiled."""

    def claimed(
        self, recipe: Recipe, out: Path | None, resume: str, runs_root: Path
    ) -> AbstractContextManager[ClaimedRun]:
        """``claimed_run`` for this command."""
        return claimed_run(
            *(recipe, out, resume, runs_root),
            claimant=self.workers.claimant,
            note=self.display.note,
            check=self.check,
        )

    def begin_records(self, run: ClaimedRun, recipe: str | None) -> None:
        """recipe.yaml (None: it is there) and environment.json; then others may open the run."""
        joins = "joined" if run.joined else "resumed"
        open_records(run.directory, recipe, self.command_line, self.display, joins)
        if run.joined:
            self.display.note(f"joining those who work in {run.directory.path}")
        run.opened()

    def written_once(
        self, directory: RunDirectory, before: bytes | None, write: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """results.json as ``write`` makes it, unless another process has written it since it was
        ``before`` (its content)."""
        with claimed(directory.path, self.workers.claimant, self.display.note):
            now = content_of(directory.results)
            if now not in (None, before):
                if self.check:
                    verify_files(directory.path, [directory.results.name])
                written: dict[str, Any] = read_json(directory.results)
                return written
            return write()


@dataclass(frozen=True)
class OpenRun:
    """A run to train, perhaps together with other commands."""

    directory: RunDirectory
    outline: RunOutline
    """Its arms and seeds."""
    session: Session
    device: str
    """As its recipe names it."""
    threads: int | None
    """That it was started with."""
    planned: Callable[[Collection[str]], RunPlan]
    """What these arms are."""
    opening: Opening
    results_before: bytes | None
    """results.json as it was when the run was opened."""
    prefix: str = ""
    """Put before the names of its units, where several runs are trained together."""

    def pending(self) -> list[Unit]:
        """What is still to be trained."""
        return self.session.processes.first(lambda: unfinished(self.outline, self.session))

    def write_results(self, study: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """results.json, made of what every arm left; DamagedError where that was altered.

        ``study``: what was decided before it, as ``write_results`` has it.
        """

        def write() -> dict[str, Any]:
            check = self.session.check
            if check:
                _check_old_results(self.directory, self.session.display)
            return write_results(self.directory, self.outline, check=check, study=study)

        return self.session.processes.first(
            lambda: self.opening.written_once(self.directory, self.results_before, write)
        )

    def begun(self, runs_root: Path) -> None:
        """``latest`` points to it."""
        self.session.processes.first(lambda: self.directory.update_latest(runs_root))


@contextmanager
def open_run(
    recipe: Recipe,
    out: Path | None,
    resume: str,
    runs_root: Path,
    opening: Opening,
    prefix: str = "",
) -> Iterator[OpenRun]:
    """A new run, or the one to continue, locked while the block runs; ``latest`` points to it.

    A new one that bad input stops before its first arm is removed again. Of several processes the
    first opens it, and the others work in what it opened.

    Raises:
        InputError: the recipe does not fit this machine, or the run to be resumed.
        DamagedError, InUse, DiskError: as ``claimed_run``.
    """
    processes = opening.processes
    check_installed(recipe.loggers)
    if any(arm.lora for arm in recipe.arms.values()):
        check_peft()
    devices = opening.workers.devices(recipe.device)  # complains before a directory is made
    jobs = min(len(devices), len(recipe.arms) * len(recipe.seeds))
    if processes.restarts and resume == "never":
        resume = "auto"  # all were started again after a failure: what they had begun is theirs
    with ExitStack() as held:

        def claim() -> tuple[RunDirectory, Recipe]:
            run = held.enter_context(opening.claimed(recipe, out, resume, runs_root))
            new = run.stored is None
            threads = jobs * opening.workers.together
            settled_recipe: Recipe = settled(recipe, threads) if run.stored is None else run.stored
            held.enter_context(not_begun_in_vain(run.directory, new))
            opening.begin_records(run, dump_recipe(settled_recipe) if new else None)
            return run.directory, settled_recipe

        directory: RunDirectory
        own: Recipe
        directory, own = processes.first(claim)
        device = processes.device(own.device)
        yield OpenRun(
            directory=directory,
            outline=RunOutline.of(own),
            session=Session(
                directory,
                device,
                opening.display,
                opening.check,
                processes,
                recipe.parallel,
                opening.profile,
            ),
            device=own.device,
            threads=own.training.num_threads,
            planned=lambda arms: processes.one_first(
                lambda: _planned(own, opening, arms, directory.learned_tokenizer)
            ),
            opening=opening,
            results_before=content_of(directory.results),
            prefix=prefix,
        )


def _planned(recipe: Recipe, opening: Opening, arms: Collection[str], learned: Path) -> RunPlan:
    """What ``arms`` are. DamagedError where the tokenizer's files are not what was written."""
    named = recipe.data.tokenizer if isinstance(recipe.data, TextData) else None
    if opening.check and isinstance(named, str):
        check_tokenizer(named)
    return plan_run(
        recipe,
        opening.sources,
        arms=arms,
        text="read",
        processes=opening.processes,
        learned=learned,
    )


def settled(recipe: Recipe, jobs: int = 1) -> Recipe:
    """The recipe with what the machine decides written down, so that the run can be repeated.

    Args:
        jobs: how many arms train side by side; torch's threads are divided among them.
    """
    threads = recipe.training.num_threads or max(1, torch.get_num_threads() // jobs)
    training = recipe.training.model_copy(update={"num_threads": threads})
    device = str(pick_device(recipe.device))
    return recipe.model_copy(update={"device": device, "training": training})


def content_of(path: Path) -> bytes | None:
    """What is in a file; None where there is none."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def open_records(
    directory: RunDirectory,
    recipe: str | None,
    line: Sequence[str] | None,
    display: Display,
    joins: str = "resumed",
) -> None:
    """recipe.yaml and environment.json; who continues a run (no ``recipe``), or joins those who
    work on it, adds its session to the latter, under ``joins``.

    environment.json only describes: a damaged one is set aside and never blocks a run.
    """
    remove_leftovers(directory.path)
    session = environment(sys.argv if line is None else line)
    if recipe is not None:
        write_text_atomic(directory.recipe, recipe)
    elif os.path.lexists(directory.environment):
        try:
            first = read_json(directory.environment)
            first.setdefault(joins, []).append(session)
            session = first
        except (DataError, AttributeError) as error:  # not JSON, or other JSON than ours
            reason = error if isinstance(error, DataError) else "not what was written"
            aside = directory.environment.with_suffix(".damaged.json")
            directory.environment.replace(aside)
            display.warn(f"{directory.environment} is damaged ({reason}); kept as {aside.name}")
    write_json(directory.environment, session)


@contextmanager
def not_begun_in_vain(directory: RunDirectory, new: bool) -> Iterator[None]:
    """Remove a new run that bad input stopped before its first arm: its name is free again.

    One that was there before stays: its recipe may be what the user wrote.
    """
    try:
        yield
    except InputError:
        own = {directory.recipe, directory.environment, directory.path / LOCK}
        with suppress(OSError, DataError):
            alone = not {"joined", "resumed"} & set(read_json(directory.environment))
            if new and alone and set(directory.path.iterdir()) <= own:
                for file in own:
                    file.unlink(missing_ok=True)
                directory.path.rmdir()
        raise


def _check_old_results(directory: RunDirectory, display: Display) -> None:
    """Warn of a results.json that was altered: it is about to be made anew from its arms."""
    try:
        if directory.results.exists():
            verify_files(directory.path, [directory.results.name])
    except DamagedError as error:
        display.warn(f"{str(error).partition('. ')[0]}; it is made anew from what the arms left")
