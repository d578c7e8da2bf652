"""The recipe whose data a run is scored on again, by the tasks ``synthetic`` and ``validation``."""

from __future__ import annotations

from wuneng.errors import TaskError
from wuneng.recipe import Recipe, load_recipe
from wuneng.records import RunDirectory

__all__ = ["run_and_recipe"]


def run_and_recipe(run: RunDirectory | None, task: str, what: str) -> tuple[RunDirectory, Recipe]:
    """``run``, which must be there, and its resolved recipe.

    Args:
        task: its name, for the message.
        what: what the task scores, as the beginning of a sentence.

    Raises:
        TaskError: there is no run.
        RecipeError: its recipe cannot be read.
    """
    if run is None:
        raise TaskError(
            f"--tasks {task}: {what}, and neither MODEL nor the baseline belongs to a run."
        )
    return run, load_recipe(run.recipe)
