"""Which run directory a training command works in.

    auto     the newest unfinished run of the same recipe, wherever it stopped; else a new one
    never    a new one
    DIR      that run, which must be of the same recipe; it may have more steps (``extension``)

In a directory that is named, with ``--out`` or so, other processes may be at work on the same
recipe: this one joins them (``unit_queue``).

Two recipes are the same when every field that can change a figure is: ``name``, ``description``,
``loggers`` and ``parallel`` may differ, and so may fields left to the machine (``device: auto``, no
``num_threads``), for which the run keeps what it was started with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wuneng.errors import InputError, WuNengError
from wuneng.recipe import Recipe, load_recipe
from wuneng.records import RUNS_ROOT, RunDirectory, usable_directory, verify
from wuneng.records.claim import Watch, claimed
from wuneng.records.claimant import Claimant, Holder
from wuneng.records.lock import InUse, is_locked, locked
from wuneng.train.extension import extend
from wuneng.train.outline import RunOutline

__all__ = ["ClaimedRun", "choose_run", "claimed_run", "differences"]

_FREE_FIELDS = ("name", "description", "loggers", "parallel")


@dataclass(frozen=True)
class ClaimedRun:
    """A run directory that this process may work in, with others of the same recipe."""

    directory: RunDirectory
    stored: Recipe | None
    """The recipe of a run that was begun before."""
    joined: bool
    """Whether others are at work in it, as far as the file system's locks tell."""
    opened: Callable[[], None]
    """To be called once its records are begun: until then nobody else opens it."""


@contextmanager
def claimed_run(
    recipe: Recipe,
    out: Path | None,
    resume: str,
    runs_root: Path = RUNS_ROOT,
    *,
    claimant: Claimant,
    note: Callable[[str], None],
    check: bool = True,
) -> Iterator[ClaimedRun]:
    """``choose_run``, and the right to open what it chose.

    Where the user named no directory and another process takes the chosen one first, the next is
    chosen; in a directory that the user named, this process joins the others.

    Args:
        note: told whom this process waits for.
        check: compare the recipe of a run that was finished before with its checksum.

    Raises:
        DamagedError: that recipe was altered: the figures are not of what it says.
        InUse: another process trains in the directory, and this recipe would make the run longer.
        InputError, DiskError: as ``choose_run``.
    """
    named = out is not None or resume not in ("auto", "never")
    while True:
        run, stored = choose_run(recipe, out, resume, runs_root, reuse=True)
        with ExitStack() as stack:
            opening = stack.enter_context(ExitStack())
            opening.enter_context(claimed(run.path, claimant, note))
            try:
                stack.enter_context(locked(run.path))
                joined = False
            except InUse:
                if not named:
                    continue
                if stored is None and not run.recipe.exists():
                    raise  # what is done there is no training of this version
                joined = True
            if stored is None and run.recipe.exists():
                continue  # begun by another process in between
            if stored is not None:
                _prepare_stored(run, stored, claimant, joined=joined, check=check)
            yield ClaimedRun(run, stored, joined, opening.close)
            return


def _prepare_stored(
    run: RunDirectory, stored: Recipe, claimant: Claimant, *, joined: bool, check: bool
) -> None:
    """The recipe of a run that is continued: as it was written, and made longer where it shall."""
    if check:
        verify(run.path, [run.recipe.name])
    before = load_recipe(run.recipe)
    if before.training.total_steps >= stored.training.total_steps:
        return
    holder = _at_work(run, before, claimant)
    if joined or holder is not None:
        raise InUse(
            f"{holder or 'another process'} is training in {run.path}, which is to become "
            f"longer (training.steps {before.training.total_steps} there, "
            f"{stored.training.total_steps} here). Wait for it"
        )
    extend(run, before, stored)


def _at_work(run: RunDirectory, recipe: Recipe, claimant: Claimant) -> Holder | None:
    """Who trains a unit of it; takes a lease where that is not known."""
    for place in RunOutline.of(recipe).places(run):
        watch = Watch(place.path, claimant)
        first = found = watch.look()
        while isinstance(first, Holder) and isinstance(found, Holder):
            if found != first:
                return found
            time.sleep(min(claimant.beat, 1.0))
            found = watch.look()
    return None


def choose_run(
    recipe: Recipe,
    out: Path | None,
    resume: str,
    runs_root: Path = RUNS_ROOT,
    *,
    reuse: bool = False,
) -> tuple[RunDirectory, Recipe | None]:
    """The directory to work in, and the recipe of the run to continue (None: a new run).

    Args:
        out: where the user wants the run; default ``runs_root/<recipe name>``, numbered if taken.
        resume: ``auto``, ``never`` or a run directory.
        reuse: a new run may take a directory that a killed process only just made.

    Raises:
        InputError: the directory holds another recipe's run, no run, or something else.
    """
    if resume not in ("auto", "never"):
        directory = Path(resume)
        if out is not None and out.resolve() != directory.resolve():
            raise InputError(f"--out {out} and --resume {resume} name different directories")
        if not (directory / "recipe.yaml").is_file():
            raise InputError(
                f"--resume {resume}: expected auto, never or a run directory; "
                f"{directory / 'recipe.yaml'} does not exist"
            )
        same = _same_recipe(directory, recipe, f"--resume {resume}")
        return RunDirectory(usable_directory(directory, "--resume")), same
    if out is not None:
        return _at_given_place(recipe, out, resume)
    if resume == "auto":
        for run in _newest_first(runs_root):
            stored = _continuable(run, recipe)
            if stored is not None:
                return run, stored
    return RunDirectory.create(recipe.name, runs_root, reuse=reuse), None


def differences(stored: Recipe, given: Recipe) -> list[str]:
    """``field: stored value, given value`` for every field that makes it another recipe."""
    old = dict(_flat(stored.model_dump(mode="json", exclude=set(_FREE_FIELDS))))
    new = dict(_flat(given.model_dump(mode="json", exclude=set(_FREE_FIELDS))))
    if given.device == "auto":
        new["device"] = old["device"]
    if given.training.num_threads is None:
        new["training.num_threads"] = old["training.num_threads"]
    # An arm repeats what it takes from model and training: the recipe's own fields say it first.
    keys = sorted(dict.fromkeys([*old, *new]), key=lambda key: key.startswith("arms."))
    return [
        f"{key} is {old.get(key, 'absent')} there, {new.get(key, 'absent')} here"
        for key in keys
        if old.get(key, ...) != new.get(key, ...)
    ]


def _at_given_place(recipe: Recipe, out: Path, resume: str) -> tuple[RunDirectory, Recipe | None]:
    run = RunDirectory(usable_directory(out, "--out"))
    if run.recipe.is_file():
        if resume == "never":
            raise InputError(f"--out {out} holds a run already, and --resume is never")
        return run, _same_recipe(out, recipe, f"--out {out}")
    if not is_locked(out) and not RunDirectory(out.resolve()).is_abandoned:
        raise InputError(f"--out {out}: expected an empty directory or a run, it is neither")
    return run, None


def _same_recipe(directory: Path, recipe: Recipe, asked: str) -> Recipe:
    """The stored recipe, with the given number of steps where that is all that differs."""
    stored = load_recipe(directory / "recipe.yaml")
    different = differences(stored, recipe)
    if different and recipe.is_single and stored.training.total_steps < recipe.training.total_steps:
        longer = _with_the_steps_of(recipe, stored)
        if not differences(longer, recipe):
            return longer
    if different:
        more = f" (and {len(different) - 3} more)" if len(different) > 3 else ""
        raise InputError(
            f"{asked} holds a run of another recipe: {'; '.join(different[:3])}{more}. "
            "Choose another --out, or train the run's own recipe.yaml"
        )
    return stored


def _with_the_steps_of(given: Recipe, stored: Recipe) -> Recipe:
    amount = {"steps": given.training.steps, "tokens": given.training.tokens}
    return stored.model_copy(update={"training": stored.training.model_copy(update=amount)})


def _newest_first(runs_root: Path) -> list[RunDirectory]:
    if not runs_root.is_dir():
        return []
    runs = [
        RunDirectory(path)
        for path in runs_root.iterdir()
        if not path.is_symlink() and (path / "recipe.yaml").is_file()
    ]
    return sorted(runs, key=lambda run: run.recipe.stat().st_mtime_ns, reverse=True)


def _continuable(run: RunDirectory, recipe: Recipe) -> Recipe | None:
    """The recipe of ``run`` if it is the same, unfinished and nobody is training in it."""
    if run.results.exists() or is_locked(run.path):
        return None
    try:
        stored = load_recipe(run.recipe)
    except WuNengError:
        return None  # damaged, or written by another version: not a candidate
    same = stored.name == recipe.name and not differences(stored, recipe)
    return stored if same else None


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, Mapping) and values:
        for key, value in values.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, values
