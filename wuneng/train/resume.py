"""Which run directory a training command works in.

    auto     the newest unfinished run of the same recipe, wherever it stopped; else a new one
    never    a new one
    DIR      that run, which must be of the same recipe; it may have more steps (``extension``)

Two recipes are the same when every field that can change a figure is: ``name``, ``description``,
``loggers`` and ``parallel`` may differ, and so may fields left to the machine (``device: auto``, no
``num_threads``), for which the run keeps what it was started with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from wuneng.errors import InputError, WuNengError
from wuneng.recipe import Recipe, load_recipe
from wuneng.records import RUNS_ROOT, RunDirectory, usable_directory, verify
from wuneng.records.lock import InUse, is_locked, locked
from wuneng.train.extension import extend

__all__ = ["choose_run", "claimed_run", "differences"]

_FREE_FIELDS = ("name", "description", "loggers", "parallel")


@contextmanager
def claimed_run(
    recipe: Recipe,
    out: Path | None,
    resume: str,
    runs_root: Path = RUNS_ROOT,
    *,
    check: bool = True,
) -> Iterator[tuple[RunDirectory, Recipe | None]]:
    """``choose_run``, its directory locked while the block runs.

    Where the user named no directory and another process takes the chosen one first, the next is
    chosen.

    Args:
        check: compare the recipe of a run that was finished before with its checksum.

    Raises:
        DamagedError: that recipe was altered: the figures are not of what it says.
        InUse: another process trains in the directory that was named.
        InputError, DiskError: as ``choose_run``.
    """
    while True:
        run, stored = choose_run(recipe, out, resume, runs_root, reuse=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(run.path))
            except InUse:
                if out is not None or resume not in ("auto", "never"):
                    raise
                continue
            if stored is None and run.recipe.exists():
                continue  # begun, and ended, by another process in between
            if stored is not None:
                if check:
                    verify(run.path, [run.recipe.name])
                before = load_recipe(run.recipe)
                if before.training.total_steps < stored.training.total_steps:
                    extend(run, before, stored)
            yield run, stored
            return


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
