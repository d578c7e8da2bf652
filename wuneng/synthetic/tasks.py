"""Which class makes the examples of which settings; a new task is a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from wuneng.errors import DataError
from wuneng.recipe import task_settings as settings
from wuneng.synthetic.addition import Addition
from wuneng.synthetic.boxes import Boxes
from wuneng.synthetic.brackets import Brackets
from wuneng.synthetic.chain import Chain
from wuneng.synthetic.compose import Compose
from wuneng.synthetic.functions import Functions
from wuneng.synthetic.induction import Induction
from wuneng.synthetic.needle import Needle
from wuneng.synthetic.recall import Recall
from wuneng.synthetic.selective_copy import SelectiveCopy
from wuneng.synthetic.state_tracking import StateTracking
from wuneng.synthetic.task import Task

__all__ = ["TASKS", "make_task"]

TASKS: Mapping[type[settings.TaskSettings], Callable[[Any], Task]] = {
    settings.RecallTask: Recall,
    settings.StateTrackingTask: StateTracking,
    settings.ComposeTask: Compose,
    settings.BoxesTask: Boxes,
    settings.ChainTask: Chain,
    settings.BracketsTask: Brackets,
    settings.SelectiveCopyTask: SelectiveCopy,
    settings.InductionTask: Induction,
    settings.NeedleTask: Needle,
    settings.FunctionsTask: Functions,
    settings.AdditionTask: Addition,
}


def make_task(task: settings.TaskSettings) -> Task:
    """The task that these settings describe. DataError when they contradict each other."""
    for field, problem in task.contradictions():
        raise DataError(f"task {task.label!r}: {field}: {problem}")
    return TASKS[type(task)](task)
