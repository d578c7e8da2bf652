"""How far the first arm of a study and another are apart, seed by seed, and what that shows.

The primary figure is concluded upon: better, worse, no difference that matters (two one-sided tests
at the study's smallest effect), or undecided. Of the exploratory ones there are many, so that their
p-values are Holm's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wuneng.statistics import (
    Conclusion,
    PairedDifference,
    TokensSaved,
    conclude,
    equivalence,
    holm,
    paired_by_seed,
    tokens_saved,
)
from wuneng.study.planning import StudyPlan

__all__ = ["difference"]

Curves = Mapping[int, Sequence[tuple[float, float]]]


def difference(
    plan: StudyPlan,
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    our_curves: Curves,
    their_curves: Curves,
    crossed: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """First minus other arm, ready for JSON.

    Args:
        ours, theirs: arms as results.json of a run has them, from the same seeds.
        our_curves, their_curves: (tokens, primary figure) of each validation, by seed.
        crossed: the primary figure's difference over seeds and rows at once, where rows were kept.
            It decides nothing, for the plan pairs by seed; what it would conclude is told, where
            seeds conclude something: with few of them its interval may be the narrower one.
    """
    primary = plan.study.primary
    found = _paired(ours, theirs, primary)
    margin = plan.study.smallest_effect * abs(float(ours["quality"][primary]))
    record = {**_told(found), "seeds": len(ours["seeds"])}
    if margin > 0:
        same = equivalence(found, margin)
        interval = [same.low, same.high] if math.isfinite(same.high - same.low) else None
        record["equivalence"] = {"p": same.p, "margin": margin, "interval": interval}
    concluded = conclude(found, margin or None, higher_is_better=plan.higher_is_better)
    record["conclusion"] = concluded.value
    record["crossed"] = None
    if crossed is not None:
        whole = _of_both(found.difference, crossed)
        told = conclude(whole, margin or None, higher_is_better=plan.higher_is_better)
        if concluded is Conclusion.UNDECIDED:
            told = concluded
        record["crossed"] = {**crossed, "conclusion": told.value}
    saved = None if plan.higher_is_better else tokens_saved(our_curves, their_curves)
    record["tokens_saved"] = None if saved is None else _saved(saved)
    record["exploratory"] = _exploratory(ours, theirs, primary)
    return record


def _paired(ours: Mapping[str, Any], theirs: Mapping[str, Any], name: str) -> PairedDifference:
    one, other = (
        np.array([seed["quality"][name] for seed in arm["per_seed"]], dtype=np.float64)
        for arm in (ours, theirs)
    )
    return paired_by_seed(one, other)


def _of_both(difference: float, crossed: Mapping[str, Any]) -> PairedDifference:
    low, high = crossed["interval"]
    return PairedDifference(
        difference,
        crossed["standard_error"],
        low,
        high,
        crossed["p"],
        "crossed-bootstrap",
        freedom=crossed["freedom"],
    )


def _told(found: PairedDifference) -> dict[str, Any]:
    return {
        "difference": found.difference,
        "interval": list(found.interval) if found.interval else None,
        "p": found.p,
        "test": found.test,
    }


def _exploratory(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], primary: str
) -> dict[str, dict[str, Any]]:
    both = [name for name in ours["quality"] if name in theirs["quality"] and name != primary]
    told = {
        name: _told(_paired(ours, theirs, name))
        for name in both
        if all(_finite(seed, name) for arm in (ours, theirs) for seed in arm["per_seed"])
    }
    adjusted = holm([one["p"] for one in told.values()])
    return {
        name: {**one, "p_holm": p} for (name, one), p in zip(told.items(), adjusted, strict=True)
    }


def _finite(seed: Mapping[str, Any], name: str) -> bool:
    value = seed["quality"].get(name)
    return value is not None and math.isfinite(value)


def _saved(found: TokensSaved) -> dict[str, Any]:
    return {
        "saved": found.saved,
        "interval": list(found.interval) if found.interval else None,
        "orders": found.orders,
        "censored": found.censored,
    }
