"""Whose gain it is: the right state must beat a wrong one on the same items.

A model whose figures stay the same when its state is that of another text does not use what the
state says about its own. Then whatever it gains over a model without state heads comes from
elsewhere: from parameters, from the token shift, from statistics that any state has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from wuneng.evaluate.comparison import MetricComparison

__all__ = ["Attribution", "attribute"]


@dataclass(frozen=True)
class Attribution:
    """What wrong states say about one figure of one task.

    Attributes:
        verdict: "state" (the right one beats every wrong one), "not the state" (it does not beat
            some), "unknown" (too few items for an interval).
        sentence: the same with its figures.
    """

    task: str
    metric: str
    verdict: Literal["state", "not the state", "unknown"]
    sentence: str


def attribute(task: str, wrong: Sequence[tuple[str, MetricComparison]]) -> Attribution | None:
    """The verdict on one figure; None where no item pairs.

    Args:
        wrong: by the control's name, the untouched model ("model") beside it under a wrong state
            ("baseline").
    """
    compared = [(name, one) for name, one in wrong if one.difference is not None]
    if not compared:
        return None
    metric = compared[0][1].metric
    where = f"{task}, {metric}"
    gains = [(name, *_gain(one)) for name, one in compared]
    shown = "; ".join(
        f"{name} {gain:+z.4f}, 95 % interval {low:+.4f} to {high:+.4f}"
        if low is not None
        else f"{name} {gain:+z.4f}"
        for name, gain, low, high in gains
    )
    if any(low is None for _, _, low, _ in gains):
        sentence = f"{where}: too few items to tell the right state from a wrong one ({shown})."
        return Attribution(task, metric, "unknown", sentence)
    if all(low > 0 for _, _, low, _ in gains if low is not None):
        return Attribution(
            task, metric, "state", f"{where}: the right state beats a wrong one ({shown})."
        )
    sentence = (
        f"{where}: the right state does not beat a wrong one ({shown}), so what the model gains "
        "over one without state heads is not the state's."
    )
    return Attribution(task, metric, "not the state", sentence)


def _gain(one: MetricComparison) -> tuple[float, float | None, float | None]:
    """How much better the right state is, with its interval; larger is better."""
    assert one.difference is not None
    difference, interval = one.difference.difference, one.difference.interval
    low, high = interval if interval is not None else (None, None)
    if one.higher_is_better:
        return difference, low, high
    if low is None or high is None:
        return -difference, None, None
    return -difference, -high, -low
