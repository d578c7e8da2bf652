"""Rules of control arms, which are trained with their state changed (``arms.NAME.state``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from wuneng.recipe.arms import Arm
from wuneng.recipe.consistency import Problem
from wuneng.recipe.training import EndEvaluation, Training

__all__ = ["OF_ANOTHER_ROW", "state_problems"]

#: Whose state, or readout, comes from another row of the same forward call.
OF_ANOTHER_ROW = ("permute", "donor")


def state_problems(
    arms: Mapping[str, Arm], training: Training, evaluation: EndEvaluation
) -> Iterator[Problem]:
    """What contradicts itself in the ``state`` of resolved arms."""
    for name, arm in arms.items():
        if arm.state == "keep":
            continue
        where = ("arms", name, "state")
        if arm.model.num_state_heads == 0:
            yield where, f"expected keep where there are no state heads, got {arm.state}"
        if training.compile:
            yield where, f"expected keep beside training.compile, got {arm.state}"
        if arm.state not in OF_ANOTHER_ROW:
            continue
        rows = {"training.batch_size": training.batch_size}
        if evaluation.batch_size is not None:
            rows["evaluation.batch_size"] = evaluation.batch_size
        for field, given in rows.items():
            if given < 2:
                yield where, f"{arm.state} needs rows beside each other: {field} is {given}"
        if training.micro_batch_size is not None:
            yield (
                where,
                f"{arm.state} takes another row of the whole batch: leave "
                f"training.micro_batch_size out, got {training.micro_batch_size}",
            )
