"""Differences between the arms of a run: on the same validation rows, or over the same seeds.

Every arm scores the same rows, so a row that is hard is hard for both arms of a pair; taking the
difference row by row removes that from the error. With several seeds the spread between seeds says
more than the rows', and the arms are paired by the seed that both were trained from. Estimators
and tests are those of ``wuneng eval`` (``wuneng.statistics``).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np

from wuneng.errors import DataError, file_errors
from wuneng.records import RunDirectory, read_json
from wuneng.statistics import (
    PairedDifference,
    crossed_components,
    crossed_difference,
    paired_by_seed,
)
from wuneng.train.figures import ROWS_SCHEMA, Column, columns
from wuneng.train.verdicts import judged_names

__all__ = ["crossed_over_seeds", "paired_differences"]


def paired_differences(
    run: RunDirectory, arms: Mapping[str, Mapping[str, Any]], primary: str | None = None
) -> list[dict[str, Any]]:
    """First minus second arm for every pair and every figure that is judged, with a 95 % interval.

    Args:
        arms: their entries in results.json.
        primary: the figure that decides a study, judged or not.

    Returns:
        Objects with ``arms``, ``figure``, ``difference``, ``standard_error``, ``interval``, ``p``,
        ``test``, and ``rows`` (one seed) or ``seeds`` (several): how many were paired. With
        several seeds that were scored on the same rows of text, ``crossed`` has what holds for
        fresh seeds *and* fresh rows, and the seeds' share of its variance.
    """
    if any(len(arm.get("seeds", ())) > 1 for arm in arms.values()):
        return _over_seeds(run, arms, primary)
    scored = {arm: _columns(run, arm) for arm in arms}
    found = []
    for first, second in combinations(scored, 2):
        for name in _judged(arms, first, second, primary):
            one, other = scored[first].get(name), scored[second].get(name)
            # A single row has no spread: nothing can be said of its difference.
            several = one is not None and len(one.values) > 1
            if one is not None and other is not None and several and one.same_rows(other):
                rows = {"rows": len(one.values)}
                found.append(_entry(first, second, name, one.minus(other)) | rows)
    return found


def _over_seeds(
    run: RunDirectory, arms: Mapping[str, Mapping[str, Any]], primary: str | None
) -> list[dict[str, Any]]:
    found = []
    for first, second in combinations(arms, 2):
        for name in _judged(arms, first, second, primary):
            one, other = (
                {seed["seed"]: seed["quality"].get(name) for seed in arms[arm]["per_seed"]}
                for arm in (first, second)
            )
            pairs = [(one[seed], other.get(seed)) for seed in one]
            known = [(a, b) for a, b in pairs if a is not None and b is not None]
            if len(known) == len(pairs) > 1:
                values = np.array(known, dtype=np.float64)
                difference = paired_by_seed(values[:, 0], values[:, 1])
                entry = _entry(first, second, name, difference) | {"seeds": len(known)}
                crossed = crossed_over_seeds(run, (first, second), list(one), name)
                found.append(entry | ({} if crossed is None else {"crossed": crossed}))
    return found


def crossed_over_seeds(
    run: RunDirectory, pair: tuple[str, str], seeds: list[int], name: str
) -> dict[str, Any] | None:
    """First minus second arm of ``pair`` in figure ``name``, over fresh seeds and rows at once.

    Returns:
        ``rows``, ``standard_error``, ``interval``, ``p``, ``freedom`` and ``share_of_seeds``, the
        seeds' part of the variance; None where seeds were not scored on the same rows, or their
        rows were not kept.
    """
    return _crossed(*(_table(run, arm, seeds, name) for arm in pair))


def _crossed(ours: list[Column], theirs: list[Column]) -> dict[str, Any] | None:
    if not ours or not theirs:
        return None
    same = all(one.same_rows(ours[0]) for one in (*ours, *theirs))
    if not same or len(ours) < 2 or len(ours[0].values) < 2:
        return None
    tables = [np.stack([column.values for column in one]) for one in (ours, theirs)]
    given: dict[str, Any] = {"weights": ours[0].weights, "scale": ours[0].scale}
    found, split = crossed_difference(*tables, **given), crossed_components(*tables, **given)
    return {
        "rows": len(ours[0].values),
        "standard_error": found.stderr,
        "interval": [found.low, found.high],
        "p": found.p,
        "freedom": found.freedom,
        "share_of_seeds": split.share_of_seeds,
    }


def _table(run: RunDirectory, arm: str, seeds: list[int], name: str) -> list[Column]:
    """A figure row by row for each seed; empty where a seed has none."""
    found = [_columns(run, arm, seed).get(name) for seed in seeds]
    known = [column for column in found if column is not None]
    return known if len(known) == len(found) else []


def _columns(run: RunDirectory, arm: str, seed: int | None = None) -> dict[str, Column]:
    """The arm's figures row by row; none of an arm that an earlier version has finished, whose
    rows.json does not tell the bytes of a row."""
    path = run.arm(arm, seed).rows
    stored = read_json(path) if path.exists() else {}
    with file_errors(f"{path}: not the rows of an end evaluation", DataError):
        return columns(stored["rows"]) if stored.get("schema") == ROWS_SCHEMA else {}


def _judged(
    arms: Mapping[str, Mapping[str, Any]], first: str, second: str, primary: str | None
) -> list[str]:
    names = [name for task in judged_names(arms[first]["quality"]).values() for name in task]
    if primary is not None and primary in arms[first]["quality"] and primary not in names:
        names.insert(0, primary)
    return [name for name in names if name in arms[second]["quality"]]


def _entry(first: str, second: str, name: str, found: PairedDifference) -> dict[str, Any]:
    return {
        "arms": [first, second],
        "figure": name,
        "difference": found.difference,
        "standard_error": found.stderr,
        "interval": [found.low, found.high],
        "p": found.p,
        "test": found.test,
    }
