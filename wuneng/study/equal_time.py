"""``match: time``: arms whose feed-forward layers are sized until a training step takes as long as
the first arm's.

Step times are measured before the plan is written, on the machine that starts the study; the widths
stand in the plan, and whoever goes on with the study takes them from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np

from wuneng.errors import DataError, RecipeError
from wuneng.recipe import WrittenRecipe
from wuneng.study.rungs import Rung, aimed_arms
from wuneng.train.measured import step_seconds
from wuneng.train.plan import ArmPlan, RunPlan

__all__ = ["WIDTHS", "Widths", "measured_widths", "planned_widths", "rung_at_widths"]

WIDTHS = "feed_forward_widths"
"""Of a rung of the plan: by arm, ``width`` and ``time``, the share of the first arm's."""

_ROUNDS = 15
_UNITS = 8
"""A width is a multiple of it."""
_CORRECTIONS = 3
_WITHIN = 0.1
"""Of the first arm's time; what is reached stands in the plan."""

Widths = Mapping[str, Mapping[str, Mapping[str, float]]]
"""By rung and arm: ``width`` and ``time``."""

Timed = Callable[[Sequence[ArmPlan], str, int], list[list[float]]]


def measured_widths(
    written: WrittenRecipe, runs: Mapping[str, RunPlan], timed: Timed = step_seconds
) -> dict[str, dict[str, dict[str, float]]]:
    """By rung: width and achieved share of the first arm's time of every arm that ``match`` aims.

    Args:
        runs: the arms by rung, sized by their parameters: where the search starts.
        timed: seconds of a step of each arm, one list a round.

    Raises:
        RecipeError: no width makes an arm take as long.
        WuNengError: a step cannot be taken here.
    """
    first = written.recipe.reference_arm
    return {
        rung: {
            name: _sized(run.arms[first], run.arms[name], run.device, rung, timed)
            for name in aimed_arms(written)
        }
        for rung, run in runs.items()
    }


def rung_at_widths(rung: Rung, widths: Mapping[str, Mapping[str, float]]) -> Rung:
    """``rung`` with these widths of its arms, whatever they were aimed at."""
    changes: dict[str, Any] = dict(rung.changes)
    for arm, found in widths.items():
        changes[f"arms.{arm}.match"] = "width"
        changes[f"arms.{arm}.model.intermediate_size"] = int(found["width"])
    return replace(rung, changes=changes, widths={arm: dict(one) for arm, one in widths.items()})


def planned_widths(
    plan: Mapping[str, Any], runs: Mapping[str, RunPlan]
) -> dict[str, dict[str, dict[str, float]]]:
    """Those of the rungs in ``runs``, from a plan that was written.

    Raises:
        DataError: it has none.
    """
    written = {one.get("rung"): one.get(WIDTHS) for one in plan.get("rungs") or ()}
    lost = [rung for rung in runs if not written.get(rung)]
    if lost:
        raise DataError(
            f"the study's plan has no {WIDTHS} of {', '.join(lost)}, which match: time needs. "
            "Start anew with --resume never"
        )
    return {rung: written[rung] for rung in runs}


def _sized(
    reference: ArmPlan, arm: ArmPlan, device: str, rung: str, timed: Timed
) -> dict[str, float]:
    """The time of a step grows with the width as a straight line does: through what was tried."""
    width = arm.config.intermediate_size
    assert width is not None
    both = [width, 2 * width]
    shares = _shares(reference, [_at(arm, units) for units in both], device, timed)
    tried = dict(zip(both, shares, strict=True))
    for _ in range(_CORRECTIONS):
        slope, start = map(float, np.polyfit(list(tried), list(tried.values()), 1))
        units = round((1 - start) / slope / _UNITS) * _UNITS if slope > 0 else 0
        if units < _UNITS or units in tried:
            break
        [tried[units]] = _shares(reference, [_at(arm, units)], device, timed)
    best = min(tried, key=lambda units: abs(tried[units] - 1))
    if abs(tried[best] - 1) > _WITHIN:
        raise RecipeError(_why_not(reference, arm, rung, tried))
    return {"width": best, "time": round(tried[best], 3)}


def _why_not(reference: ArmPlan, arm: ArmPlan, rung: str, tried: Mapping[int, float]) -> str:
    found = ", ".join(f"{tried[units]:.2f} with {units:,}" for units in sorted(tried))
    return (
        f"study.match: time: at {rung} no feed-forward width was found with which a step of arm "
        f"'{arm.name}' takes as long as one of '{reference.name}' (within {_WITHIN:.0%}): {found} "
        "channels. On a machine that is busy with something else, times say little; match: flops "
        "needs none"
    )


def _shares(reference: ArmPlan, arms: Sequence[ArmPlan], device: str, timed: Timed) -> list[float]:
    """The median over rounds of each arm's time beside the first arm's in that round."""
    rounds = timed([reference, *arms], device, _ROUNDS)
    return [median(times[n] / times[0] for times in rounds) for n in range(1, len(arms) + 1)]


def _at(arm: ArmPlan, width: int) -> ArmPlan:
    config = type(arm.config)(**{**arm.config.to_dict(), "intermediate_size": width})
    return replace(arm, config=config)
