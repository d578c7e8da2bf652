"""Differences between arms on the same validation rows.

Every arm scores the same rows, so a row that is hard is hard for both arms of a pair; taking the
difference row by row removes that from the error. With d_i the difference in nats of row i and b
the bytes of all rows, the difference in bits per byte is sum d_i / (b ln 2), and its standard error
that of a ratio over rows (``quality.ratio``).
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

from wuneng.recipe import Recipe
from wuneng.records import RunDirectory, read_json
from wuneng.train.quality import ratio

__all__ = ["NORMAL_95", "paired_differences"]

NORMAL_95 = 1.959964  # half the width of a 95 % interval in standard errors


def paired_differences(run: RunDirectory, recipe: Recipe) -> list[dict[str, Any]]:
    """First minus second arm for every pair and text task, with a 95 % interval over rows.

    Empty for synthetic tasks; for several seeds too, whose spread says more than the rows'.
    """
    if len(recipe.seeds) > 1:
        return []
    places = {arm: run.arm(arm).rows for arm in recipe.arms}
    rows = {arm: read_json(path) for arm, path in places.items() if path.exists()}
    found = []
    for first, second in combinations(rows, 2):
        for task in rows[first]:
            one, other = rows[first][task], rows[second].get(task)
            if task != "schema" and other is not None and one["tokens"] == other["tokens"]:
                found.append({"arms": [first, second], **_difference(task, one, other)})
    return found


def _difference(task: str, one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    nats = [a - b for a, b in zip(one["nats"], other["nats"], strict=True)]
    value, error = ratio(nats, one["tokens"])
    figure = f"{task}/loss"
    if one["bytes"]:
        scale = sum(one["tokens"]) / one["bytes"] / math.log(2)
        value, error, figure = value * scale, error * scale, f"{task}/bits_per_byte"
    half = NORMAL_95 * error
    return {
        "figure": figure,
        "difference": value,
        "standard_error": error,
        "interval": [value - half, value + half],
        "rows": len(nats),
    }
