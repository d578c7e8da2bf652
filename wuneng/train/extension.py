"""More steps for a run that has trained already.

    constant    goes on from the last checkpoint
    wsd         goes on from the checkpoint at which the decay began, which every run keeps; the
                decay comes again, later
    cosine      cannot: its rate depends on the number of steps at every step

On the CPU the weights are then, bit for bit, those of a run that was planned with as many steps.
What differs: the times, one more line of metrics.jsonl at the old last step (constant), and
checkpoints that the planned run would have rotated away.
"""

from __future__ import annotations

import re

from wuneng.errors import InputError
from wuneng.recipe import Recipe, SyntheticData, TextData, Training, dump_recipe
from wuneng.records import CHECKSUMS, ArmDirectory, RunDirectory, write_text_atomic
from wuneng.records.atomic import remove_directory
from wuneng.train.outline import RunOutline
from wuneng.train.schedule import steps_before_decay

__all__ = ["extend"]


def extend(run: RunDirectory, stored: Recipe, wanted: Recipe) -> None:
    """Make the run of ``stored`` one of ``wanted``, which has more steps, and is unfinished.

    May be killed anywhere and repeated: the recipe, which decides, is written last.

    Raises:
        InputError: why this run cannot be extended; nothing was touched then.
    """
    _check_data(stored.data)
    outline = RunOutline.of(stored)
    trained = [name for name, arm in stored.arms.items() if arm.train != "none"]
    for name in trained:
        if stored.arms[name].stages is not None:
            raise InputError(
                f"training.steps: arm {name!r} cannot be extended: its stages share all steps, so "
                "a longer run differs from its first stage on. Train it anew with as many steps"
            )
    doomed: list[tuple[ArmDirectory, list[int]]] = []
    for arm in trained:
        for seed in outline.seeds:
            place = outline.place(run, arm, seed)
            doomed.append((place, _checkpoints_in_the_decay(place, arm, stored.arm_training(arm))))
    for path in (run.results, run.path / CHECKSUMS):
        path.unlink(missing_ok=True)
    for place, steps in doomed:
        for path in (place.result, place.path / CHECKSUMS):
            path.unlink(missing_ok=True)
        for step in steps:
            remove_directory(place.checkpoints / f"step-{step}")
    write_text_atomic(run.recipe, dump_recipe(wanted))


def _check_data(data: TextData | SyntheticData) -> None:
    if not isinstance(data, SyntheticData):
        return
    for task in data.tasks:
        if getattr(task, "curriculum", False):
            raise InputError(
                f"training.steps: a run cannot be extended whose task {task.task!r} has a "
                "curriculum: its stages are fractions of all steps. Train it anew with as many "
                "steps"
            )


def _checkpoints_in_the_decay(place: ArmDirectory, arm: str, training: Training) -> list[int]:
    """Steps of the checkpoints that the longer run would not have come by."""
    total = training.total_steps
    if training.schedule == "cosine":
        raise InputError(
            f"training.steps: arm {arm!r} cannot be extended: its learning rate follows a cosine "
            f"over all {total:,} steps, so a longer run differs from its first step on. Train it "
            "anew; schedule: wsd or constant can be extended"
        )
    last = steps_before_decay(total, training)
    found = place.checkpoints.glob("step-*") if place.checkpoints.is_dir() else ()
    names = (re.fullmatch(r"step-(\d+)", path.name) for path in found)
    steps = sorted(int(match.group(1)) for match in names if match)
    if steps and not any(step <= last for step in steps):
        raise InputError(
            f"training.steps: arm {arm!r} cannot be extended: {place.checkpoints} has no "
            f"checkpoint from before its decay, which began after step {last:,}. Train it anew"
        )
    return [step for step in steps if step > last]
