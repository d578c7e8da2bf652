"""How time and memory grow with length: the slope of a straight line on log axes.

A linear algorithm tends to 1, a quadratic one to 2. Fixed costs flatten the start, so beside the
fit over all lengths stands the slope of the last doubling, which is nearer to the limit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from wuneng.bench.record import Row

__all__ = ["fit_exponent", "growth"]

_QUANTITIES = {"time": "median_ms", "memory": "peak_bytes"}


def fit_exponent(lengths: Sequence[float], values: Sequence[float]) -> float:
    """Least-squares slope of log(value) over log(length).

    Raises:
        ValueError: fewer than two different lengths, or a value that is not positive.
    """
    if len(set(lengths)) < 2:
        raise ValueError("an exponent needs at least two different lengths")
    if any(value <= 0 for value in (*lengths, *values)):
        raise ValueError("an exponent needs positive lengths and values")
    x, y = ([math.log(value) for value in values_] for values_ in (lengths, values))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)


def growth(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """One entry for each series of rows that differ in length only, time and memory apart."""

    def series(row: Row) -> tuple[str, str, str, int, str]:
        return row.what, row.operation, row.arm, row.batch, row.dtype

    entries = []
    for key, members in groupby(sorted(rows, key=series), key=series):
        own = sorted(members, key=lambda row: row.seq_len)
        for quantity, field in _QUANTITIES.items():
            points = [(row.seq_len, getattr(row, field)) for row in own]
            points = [(length, value) for length, value in points if value]
            if len(points) < 2:
                continue
            lengths, values = zip(*points, strict=True)
            entries.append(
                dict(zip(("what", "operation", "arm", "batch", "dtype"), key, strict=True))
                | {
                    "quantity": quantity,
                    "exponent": fit_exponent(lengths, values),
                    "last_exponent": fit_exponent(lengths[-2:], values[-2:]),
                    "seq_lens": list(lengths),
                }
            )
    return entries
