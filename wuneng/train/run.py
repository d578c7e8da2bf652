"""A whole recipe: every arm from every seed, in turn, and the comparison at the end.

An arm is finished when its ``result.json`` exists; a run is when ``results.json`` does. Whatever
kills the process in between, the same command takes up where the last checkpoint stands.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wuneng.data.batch import Prepared
from wuneng.device import autocast_dtype, environment, pick_device, require_one_process
from wuneng.errors import DamagedError, DataError, InputError
from wuneng.recipe import Recipe, SyntheticData, TextData, dump_recipe
from wuneng.records import (
    RUNS_ROOT,
    RunDirectory,
    read_json,
    refuse_links,
    write_json,
    write_text_atomic,
)
from wuneng.records import verify as verify_files
from wuneng.records.atomic import remove_leftovers
from wuneng.records.lock import LOCK
from wuneng.train.arm_run import Session, run_arm
from wuneng.train.display import Display, make_display
from wuneng.train.loggers import check_installed
from wuneng.train.lora import check_peft
from wuneng.train.outline import RunOutline
from wuneng.train.paired_table import paired_table
from wuneng.train.plan import RunPlan, plan_run
from wuneng.train.results import finished_record, train_again, write_results
from wuneng.train.resume import claimed_run
from wuneng.train.signals import Interrupted, how_to_resume
from wuneng.train.starting_point import Sources
from wuneng.train.summary import results_table

if TYPE_CHECKING:
    from wuneng.tables import Table

__all__ = ["Results", "run"]


@dataclass(frozen=True)
class Results:
    """What a finished run leaves."""

    directory: Path
    record: dict[str, Any]
    """The content of results.json."""

    @property
    def table(self) -> Table:
        """The arms side by side, for a terminal."""
        return results_table(self.record)

    @property
    def paired(self) -> Table | None:
        """The paired differences of the arms; None where nothing was paired."""
        return paired_table(self.record)

    @property
    def sentence(self) -> str:
        """What the figures do and do not show."""
        return str(self.record["summary"])


def run(
    recipe: Recipe,
    out: RunDirectory | Path | None = None,
    resume: str = "auto",
    display: Display | None = None,
    *,
    runs_root: Path = RUNS_ROOT,
    command_line: Sequence[str] | None = None,
    sources: Sources | None = None,
    verify: bool = True,
) -> Results:
    """Train every arm of ``recipe`` from every seed and compare them.

    Args:
        out: where the run goes; default ``runs_root/<recipe name>``, numbered if that is taken.
        resume: ``auto`` (the newest unfinished run of the same recipe, if there is one), ``never``,
            or a run directory. On the CPU the run then continues bit for bit as if never stopped.
        display: who watches; default a panel on a terminal and plain lines elsewhere.
        runs_root: gets the ``latest`` link.
        command_line: goes into environment.json; default this process's.
        sources: finds, and converts where need be, what ``init_from`` names; by default only
            models that are WuNeng already.
        verify: compare what finished arms left, and models that arms start from, with their
            checksums.

    Raises:
        DamagedError: a finished file is not what was written.
        InputError: the recipe does not fit the data, the machine or the run to be resumed. A run
            in which nothing was trained yet then leaves nothing behind.
        NonFiniteError: a loss or gradient is not finite.
        DiskError: the disk is full; the last good checkpoint stands.
        Interrupted: a signal came; what was done is saved (``exit_code`` 130 or 143).
    """
    require_one_process()
    display = make_display() if display is None else display
    check_installed(recipe.loggers)
    if any(arm.lora for arm in recipe.arms.values()):
        check_peft()
    pick_device(recipe.device)  # complains before a directory is made
    place = out.path if isinstance(out, RunDirectory) else out
    claim = claimed_run(recipe, place, str(resume), runs_root, check=verify)
    with closing(display), claim as claimed:
        directory, stored = claimed
        recipe = _settled(recipe) if stored is None else stored
        device = pick_device(recipe.device)
        try:
            threads = recipe.training.num_threads
            with _reproducible(threads, device), _not_begun_in_vain(directory, stored is None):
                written = dump_recipe(recipe) if stored is None else None
                _open_records(directory, written, command_line, display)
                session = Session(directory, device, display, check=verify)
                outline = RunOutline.of(recipe)
                if unfinished := _unfinished(outline, session):
                    _say_where_tokens_are_kept(recipe.data, display)
                    wanted = {arm for arms in unfinished.values() for arm in arms}
                    plan = plan_run(recipe, sources, arms=wanted, text="read")
                    _train_arms(plan, unfinished, session, runs_root)
                directory.update_latest(runs_root)
                if verify:
                    _check_old_results(directory, display)
                return Results(directory.path, write_results(directory, outline, check=verify))
        except Interrupted as stopped:
            where = how_to_resume(directory.path)
            raise Interrupted(f"{stopped}. {where}", stopped.signal_number) from None


def _settled(recipe: Recipe) -> Recipe:
    """The recipe with what the machine decides written down, so that the run can be repeated."""
    threads = recipe.training.num_threads or torch.get_num_threads()
    training = recipe.training.model_copy(update={"num_threads": threads})
    device = str(pick_device(recipe.device))
    return recipe.model_copy(update={"device": device, "training": training})


@contextmanager
def _reproducible(num_threads: int | None, device: torch.device) -> Iterator[None]:
    """The thread count and, on the CPU, the algorithms that make a run repeatable to the bit."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    filling = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.set_num_threads(num_threads or threads)
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Filling every fresh buffer with NaN would find bugs, at a price in every operation.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = filling  # type: ignore[attr-defined]


def _open_records(
    directory: RunDirectory, recipe: str | None, line: Sequence[str] | None, display: Display
) -> None:
    """recipe.yaml and environment.json; a resumed run (no ``recipe``) adds its session to the
    latter.

    environment.json only describes: a damaged one is set aside and never blocks a run.
    """
    remove_leftovers(directory.path)
    session = environment(sys.argv if line is None else line)
    if recipe is not None:
        write_text_atomic(directory.recipe, recipe)
    elif os.path.lexists(directory.environment):
        try:
            first = read_json(directory.environment)
            first.setdefault("resumed", []).append(session)
            session = first
        except (DataError, AttributeError) as error:  # not JSON, or other JSON than ours
            reason = error if isinstance(error, DataError) else "not what was written"
            aside = directory.environment.with_suffix(".damaged.json")
            directory.environment.replace(aside)
            display.warn(f"{directory.environment} is damaged ({reason}); kept as {aside.name}")
    write_json(directory.environment, session)


@contextmanager
def _not_begun_in_vain(directory: RunDirectory, new: bool) -> Iterator[None]:
    """Remove a new run that bad input stopped before its first arm: its name is free again.

    One that was there before stays: its recipe may be what the user wrote.
    """
    try:
        yield
    except InputError:
        own = {directory.recipe, directory.environment, directory.path / LOCK}
        with suppress(OSError):
            if new and set(directory.path.iterdir()) <= own:
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


def _unfinished(outline: RunOutline, session: Session) -> dict[int, list[str]]:
    """The arms that each seed still has to train; seeds that are done with are left out."""
    unfinished: dict[int, list[str]] = {}
    for seed in outline.seeds:
        for arm in outline.arms:
            place = outline.place(session.run, arm, seed)
            if finished_record(place, check=session.check) is None:
                unfinished.setdefault(seed, []).append(arm)
                continue
            if session.check:
                verify_files(place.model, advice=train_again(place))
            session.display.note(f"{arm} (seed {seed}): finished before, skipped")
    return unfinished


def _say_where_tokens_are_kept(data: TextData | SyntheticData, display: Display) -> None:
    if isinstance(data, TextData):
        from wuneng.data.cache_directory import cache_root

        display.note(f"tokenised text is kept in {cache_root(data.cache_dir)}")


def _train_arms(
    plan: RunPlan, unfinished: Mapping[int, Sequence[str]], session: Session, runs_root: Path
) -> None:
    """Seed by seed, every arm of a seed from the same first batch."""
    for arm in plan.arms.values():  # what would stop a later arm is found out before the first
        autocast_dtype(arm.training.precision, session.device)
    for seed, arms in unfinished.items():
        data = _prepare(plan, seed)
        session.run.update_latest(runs_root)
        session.display.note(data.description)
        beginning = copy.deepcopy(data.train.state_dict())
        for name in arms:
            data.train.load_state_dict(copy.deepcopy(beginning))
            refuse_links(session.run.path / name)
            run_arm(plan, plan.arms[name], seed, data, session)


def _prepare(plan: RunPlan, seed: int) -> Prepared:
    data, training, evaluation = plan.data, plan.training, plan.evaluation
    if isinstance(data, TextData):
        from wuneng.data import prepare_text

        return prepare_text(data, training, evaluation, seed, plan.vocabulary.tokenizer)
    from wuneng.synthetic import prepare_synthetic

    return prepare_synthetic(data, training, evaluation, seed, training.total_steps)
