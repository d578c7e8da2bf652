"""Quality figures of a model over a fixed set of batches, with standard errors.

    <task>/accuracy@<length>    share of scored positions predicted right (arg max)
    <task>/loss                 nats per scored token; synthetic tasks: at the shortest length
    <task>/perplexity           exp(loss), text only
    <task>/bits_per_byte        total nats / ln 2 / UTF-8 bytes, text only

Standard errors treat a row (one example, one packed window) as the unit, because the positions of
a row stand or fall together: scoring 64 positions of a row is not 64 independent trials.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wuneng.data.batch import IGNORED, Batch
from wuneng.train.step import Numerics, micro_batches

__all__ = ["Quality", "measure", "ratio"]

TEXT_TASK = "text"


@dataclass
class Quality:
    """Figures by quality name."""

    values: dict[str, float] = field(default_factory=dict)
    standard_errors: dict[str, float] = field(default_factory=dict)
    examples: dict[str, int] = field(default_factory=dict)
    """Rows that a figure was averaged over."""
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Text tasks: ``nats`` and ``tokens`` of every row and the ``bytes`` of all, for comparing
    arms row by row."""

    def add(self, name: str, value: float, standard_error: float, examples: int) -> None:
        """Record one figure."""
        self.values[name] = value
        self.standard_errors[name] = standard_error
        self.examples[name] = examples


@dataclass
class _Tally:
    """Per-row sums of one task at one length."""

    nats: list[float] = field(default_factory=list)
    right: list[int] = field(default_factory=list)
    scored: list[int] = field(default_factory=list)
    target_bytes: int = 0


def measure(
    model: nn.Module,
    batches: Iterable[Batch],
    numerics: Numerics,
    *,
    micro_batch_size: int | None = None,
    before_batch: Callable[[], None] = lambda: None,
) -> Quality:
    """Score ``model`` (in evaluation mode, without gradients) on every batch.

    ``before_batch`` is called ahead of each batch and may raise to stop early. The model is left
    in the mode it came in. Rows without a scored position are left out.
    """
    tallies: dict[tuple[str, int], _Tally] = {}
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                before_batch()
                tally = tallies.setdefault((batch.task, batch.length), _Tally())
                tally.target_bytes += batch.target_bytes
                for piece in micro_batches(batch, micro_batch_size):
                    _score(model, piece, numerics, tally)
    finally:
        model.train(was_training)
    return _figures(tallies)


def _score(
    model: nn.Module,
    piece: tuple[Tensor, Tensor, Tensor | None],
    numerics: Numerics,
    tally: _Tally,
) -> None:
    """Add the rows of ``(input_ids, labels, document_ids)``, each ``[B, T]``, to ``tally``."""
    device = numerics.device
    input_ids, labels = piece[0].to(device), piece[1].to(device)
    documents = None if piece[2] is None else piece[2].to(device)
    with numerics.autocast():
        logits = model(input_ids=input_ids, document_ids=documents, use_cache=False).logits
    scored = labels != IGNORED
    nats = F.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
    ).view_as(labels)
    right = (logits.argmax(-1) == labels) & scored
    counts, rights = scored.sum(1).tolist(), right.sum(1).tolist()
    # Sums over a row in float64: thousands of small terms, and perplexities are compared closely.
    row_nats = nats.to("cpu", torch.float64).sum(1).tolist()
    for row, count in enumerate(counts):
        if count:
            tally.scored.append(count)
            tally.nats.append(row_nats[row])
            tally.right.append(rights[row])


def _figures(tallies: dict[tuple[str, int], _Tally]) -> Quality:
    quality = Quality()
    for task in dict.fromkeys(task for task, _ in tallies):
        lengths = sorted(length for name, length in tallies if name == task)
        lengths = [length for length in lengths if tallies[task, length].scored]
        if not lengths:
            continue
        if task == TEXT_TASK or tallies[task, lengths[0]].target_bytes:
            _add_text_figures(quality, task, [tallies[task, length] for length in lengths])
            continue
        for length in lengths:
            tally = tallies[task, length]
            right = [float(value) for value in tally.right]
            value, error = ratio(right, tally.scored)
            quality.add(f"{task}/accuracy@{length}", value, error, len(right))
        shortest = tallies[task, lengths[0]]
        quality.add(f"{task}/loss", *ratio(shortest.nats, shortest.scored), len(shortest.nats))
    return quality


def _add_text_figures(quality: Quality, task: str, tallies: list[_Tally]) -> None:
    """Loss, perplexity and bits per byte over all lengths together."""
    nats = [value for tally in tallies for value in tally.nats]
    scored = [count for tally in tallies for count in tally.scored]
    loss, error = ratio(nats, scored)
    perplexity = math.exp(min(loss, 700.0))
    quality.add(f"{task}/loss", loss, error, len(nats))
    quality.add(f"{task}/perplexity", perplexity, perplexity * error, len(nats))
    target_bytes = sum(tally.target_bytes for tally in tallies)
    quality.rows[task] = {"nats": nats, "tokens": scored, "bytes": target_bytes}
    if target_bytes:
        scale = sum(scored) / target_bytes / math.log(2)
        quality.add(f"{task}/bits_per_byte", loss * scale, error * scale, len(nats))


def ratio(sums: list[float], counts: list[int]) -> tuple[float, float]:
    """``sum(sums) / sum(counts)`` and its standard error over rows (linearised ratio estimator)."""
    rows, total = len(sums), sum(counts)
    value = math.fsum(sums) / total
    if rows < 2:
        return value, 0.0
    residuals = (s - value * c for s, c in zip(sums, counts, strict=True))
    variance = math.fsum(r * r for r in residuals) / (rows - 1)
    return value, math.sqrt(rows * variance) / total
