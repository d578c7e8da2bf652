"""Which run directory a training command works in.

    auto     the newest unfinished run of the same recipe, wherever it stopped; else a new one
    never    a new one
    DIR      that run, which must be of the same recipe

Two recipes are the same when every field that can change a figure is: ``name``, ``description``
and ``loggers`` may differ, and so may fields left to the machine (``device: auto``, no
``num_threads``), for which the run keeps what it was started with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wuneng.errors import InputError, WuNengError
from wuneng.recipe import Recipe, load_recipe
from wuneng.records import RUNS_ROOT, RunDirectory
from wuneng.records.lock import is_locked

__all__ = ["choose_run", "differences"]

_FREE_FIELDS = ("name", "description", "loggers")


def choose_run(
    recipe: Recipe, out: Path | None, resume: str, runs_root: Path = RUNS_ROOT
) -> tuple[RunDirectory, Recipe | None]:
    """The directory to work in, and the recipe of the run to continue (None: a new run).

    Args:
        out: where the user wants the run; default ``runs_root/<recipe name>``, numbered if taken.
        resume: ``auto``, ``never`` or a run directory.

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
        return RunDirectory(directory), _same_recipe(directory, recipe, f"--resume {resume}")
    if out is not None:
        return _at_given_place(recipe, out, resume)
    if resume == "auto":
        for run in _newest_first(runs_root):
            stored = _continuable(run, recipe)
            if stored is not None:
                return run, stored
    return RunDirectory.create(recipe.name, runs_root), None


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
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: expected a directory, it is a file")
    if (out / "recipe.yaml").is_file():
        if resume == "never":
            raise InputError(f"--out {out} holds a run already, and --resume is never")
        return RunDirectory(out), _same_recipe(out, recipe, f"--out {out}")
    if out.is_dir() and any(path.name != ".lock" for path in out.iterdir()):
        raise InputError(f"--out {out}: expected an empty directory or a run, it is neither")
    out.mkdir(parents=True, exist_ok=True)
    return RunDirectory(out), None


def _same_recipe(directory: Path, recipe: Recipe, asked: str) -> Recipe:
    stored = load_recipe(directory / "recipe.yaml")
    different = differences(stored, recipe)
    if different:
        more = f" (and {len(different) - 3} more)" if len(different) > 3 else ""
        raise InputError(
            f"{asked} holds a run of another recipe: {'; '.join(different[:3])}{more}. "
            "Choose another --out, or train the run's own recipe.yaml"
        )
    return stored


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
