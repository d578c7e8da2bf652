"""The quality figures that rows of scores add up to, and what each is a ratio of.

    <task>/accuracy@<length>    share of scored positions predicted right (arg max)
    <task>/loss                 nats per scored token; synthetic tasks: at the shortest length
    <task>/perplexity           exp(loss), text only
    <task>/bits_per_byte        total nats / ln 2 / UTF-8 bytes, text only

A row (one example, one packed window) is the unit of every standard error, because the positions of
a row stand or fall together: scoring 64 positions of a row is not 64 independent trials.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wuneng.statistics import Array, Estimate, PairedDifference, Scale, estimate, paired_difference

__all__ = ["ROWS_SCHEMA", "Column", "RowScores", "columns"]

#: Of rows.json. In the first one, text had the bytes of all rows together.
ROWS_SCHEMA = 2


@dataclass
class RowScores:
    """What a model scored on the rows of one task at one length; lists of one number a row."""

    nats: list[float] = field(default_factory=list)
    right: list[int] = field(default_factory=list)
    """Scored positions whose most probable token is the right one."""
    tokens: list[int] = field(default_factory=list)
    """Scored positions."""
    bytes: list[int] = field(default_factory=list)
    """UTF-8 bytes of the scored labels; empty for tasks whose tokens are not text."""


@dataclass(frozen=True)
class Column:
    """One figure, row by row: a function of ``sum(values) / sum(weights)``.

    Attributes:
        values, weights: ``[rows]`` float64, as ``wuneng.statistics`` takes them.
    """

    values: Array
    weights: Array
    scale: Scale
    higher_is_better: bool

    def __post_init__(self) -> None:
        if self.values.shape != self.weights.shape:
            raise ValueError(f"{len(self.values)} values, but {len(self.weights)} weights")

    def estimate(self) -> Estimate:
        """The figure and its standard error over rows."""
        return estimate(self.values, self.weights, self.scale)

    def minus(self, other: Column) -> PairedDifference:
        """The difference from the figure of another model on the same rows."""
        return paired_difference(
            self.values,
            other.values,
            model_weights=self.weights,
            baseline_weights=other.weights,
            scale=self.scale,
        )

    def same_rows(self, other: Column) -> bool:
        """Whether another model was scored on as many rows with the same weights."""
        return bool(np.array_equal(self.weights, other.weights))


def columns(rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Column]:
    """Every figure by name.

    Args:
        rows: task, then length, to the fields of `RowScores`.
    """
    found: dict[str, Column] = {}
    for task, by_length in rows.items():
        lengths = sorted((key for key in by_length if by_length[key]["tokens"]), key=int)
        if not lengths:
            continue
        if any(by_length[length]["bytes"] for length in lengths):
            found |= _text(task, [by_length[length] for length in lengths])
            continue
        for length in lengths:
            one = by_length[length]
            found[f"{task}/accuracy@{length}"] = Column(
                _array(one["right"]), _array(one["tokens"]), "mean", True
            )
        shortest = by_length[lengths[0]]
        found[f"{task}/loss"] = Column(
            _array(shortest["nats"]), _array(shortest["tokens"]), "mean", False
        )
    return found


def _text(task: str, parts: list[Mapping[str, Any]]) -> dict[str, Column]:
    """Loss, perplexity and bits per byte over all lengths together."""
    nats, tokens, sizes = (
        np.concatenate([_array(part[key]) for part in parts]) for key in ("nats", "tokens", "bytes")
    )
    found = {
        f"{task}/loss": Column(nats, tokens, "mean", False),
        f"{task}/perplexity": Column(-nats, tokens, "perplexity", False),
    }
    if sizes.sum():
        found[f"{task}/bits_per_byte"] = Column(-nats, sizes, "bits", False)
    return found


def _array(numbers: Any) -> Array:
    found = np.asarray(numbers, dtype=np.float64)
    if found.ndim != 1:
        raise ValueError(f"expected one number for each row, got an array of {found.shape}")
    return found
