"""``wuneng train`` in several processes: starting them, and who of them talks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from wuneng.errors import InputError, MissingProcess, WuNengError

if TYPE_CHECKING:
    from wuneng.recipe import Recipe

__all__ = ["is_first", "seen", "start"]

# What srun tells each task that it starts, and a shell that it starts tells its own: they may do
# different work, or share a run's arms and seeds.
_STEP_TASKS = "SLURM_STEP_NUM_TASKS"


def start(number: int | None, jobs: int | None, recipe: Recipe, *, named: bool) -> int:
    """Run this command in ``number`` processes and leave with their exit code; come back in each of
    those, and where no more than one is asked for, or groups of them (``jobs``).

    Args:
        named: whether the run's directory was given (``--out``, ``--resume``).

    Returns:
        How many processes this one shall start for each arm.

    Raises:
        InputError: ``recipe`` cannot be trained by that many together, or others were started.
        RunError: one of them was killed.
    """
    from wuneng.distributed.degrees import degrees_for
    from wuneng.distributed.launched import launched

    info = launched()
    if info is None and not named:
        _refuse_tasks()
    size = info.size if info is not None else number or 1
    if number is not None and number != size:
        raise InputError(f"--processes {number}: expected {size}, which were started (WORLD_SIZE)")
    if size == 1:
        return 1
    if jobs is not None:
        if info is not None:
            raise InputError(
                f"--jobs {jobs}: expected none under a launcher of several processes, which train "
                "each arm together; --jobs N --processes P starts groups of them"
            )
        degrees_for(recipe.parallel, size)
        return size
    if not recipe.is_single:
        raise InputError(
            f"{recipe.name} has sweep or study, and so states several runs: several processes "
            "train the arms of a single one together; with --jobs N (1 or more) beside --processes "
            "each of N groups of them trains another run"
        )
    degrees_for(recipe.parallel, size)
    if info is None:
        from wuneng.distributed.local import run_locally

        raise typer.Exit(run_locally(size, ["-m", "wuneng_cli", *sys.argv[1:]]))
    return 1


def _refuse_tasks() -> None:
    """InputError where srun started this command several times and nothing says in which directory
    they meet: each would do all of the work in one of its own."""
    size = os.environ.get(_STEP_TASKS, "")
    if size.isdecimal() and int(size) > 1:
        raise InputError(
            f"{_STEP_TASKS} is {size}: expected --out DIRECTORY, in which {size} tasks of srun "
            "share the arms and seeds, or torchrun in each task, which trains an arm in all of "
            "them together (recipes/slurm-units.sh, recipes/slurm-nodes.sh)"
        )


def is_first() -> bool:
    """Whether this process prints results: of several, one does."""
    from wuneng.distributed.launched import launched

    info = launched()
    return info is None or info.rank == 0


@contextmanager
def seen() -> Iterator[None]:
    """An error that all processes meet is told by the first alone."""
    first = is_first()
    try:
        yield
    except MissingProcess:
        raise
    except WuNengError as error:
        if first:
            raise
        raise typer.Exit(error.exit_code) from None
