"""What a model scores on every row of fixed batches; ``figures`` says what it adds up to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from wuneng.data.batch import IGNORED, Batch
from wuneng.distributed.wrapping import put_away
from wuneng.errors import NonFiniteError
from wuneng.model.finite import what_is_not_finite
from wuneng.model.head_loss import ask, token_scores, unwrapped
from wuneng.train.figures import RowScores, columns
from wuneng.train.step import Numerics, micro_batches

__all__ = ["Quality", "measure"]


@dataclass
class Quality:
    """Figures by quality name."""

    values: dict[str, float] = field(default_factory=dict)
    standard_errors: dict[str, float] = field(default_factory=dict)
    examples: dict[str, int] = field(default_factory=dict)
    """Rows that a figure was averaged over."""
    rows: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """Task, then length, to what every row scored (``figures.RowScores``), for comparing arms row
    by row."""


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

    Raises NonFiniteError, with the row and the layer, where scored logits are NaN or infinite.
    """
    tallies: dict[str, dict[str, RowScores]] = {}
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                before_batch()
                tally = tallies.setdefault(batch.task, {}).setdefault(
                    str(batch.length), RowScores()
                )
                sizes = iter(batch.row_bytes)
                for piece in micro_batches(batch, micro_batch_size):
                    _score(model, piece, numerics, tally)
                    if batch.row_bytes:
                        _count_bytes(piece[1], sizes, tally)
    finally:
        put_away(model)
        model.train(was_training)
    return _quality(tallies)


def _score(
    model: nn.Module,
    piece: tuple[Tensor, Tensor, Tensor | None],
    numerics: Numerics,
    tally: RowScores,
) -> None:
    """Add the rows of ``(input_ids, labels, document_ids)``, each ``[B, T]``, to ``tally``."""
    device = numerics.device
    input_ids, labels = piece[0].to(device), piece[1].to(device)
    documents = None if piece[2] is None else piece[2].to(device)
    with numerics.autocast():
        nats, right, finite = ask(model, input_ids, documents, token_scores(labels))
    scored = labels != IGNORED
    bad = (finite == 0) & scored
    if bad.any():
        raise _not_finite(unwrapped(model), numerics, input_ids, documents, bad, tally)
    counts, rights = scored.sum(1).tolist(), right.sum(1).int().tolist()
    # Sums over a row in float64: thousands of small terms, and perplexities are compared closely.
    row_nats = nats.to("cpu", torch.float64).sum(1).tolist()
    for row, count in enumerate(counts):
        if count:
            tally.tokens.append(count)
            tally.nats.append(row_nats[row])
            tally.right.append(rights[row])


def _not_finite(
    model: nn.Module,
    numerics: Numerics,
    input_ids: Tensor,
    documents: Tensor | None,
    bad: Tensor,
    tally: RowScores,
) -> NonFiniteError:
    """``bad`` ``[B, T]``: scored positions whose logits are not finite."""
    row = int(bad.any(1).nonzero()[0])
    one = slice(row, row + 1)
    document = None if documents is None else documents[one]
    with numerics.autocast():  # what overflows in float16 may be finite in float32
        why = what_is_not_finite(
            model,
            lambda: model(input_ids=input_ids[one], document_ids=document, use_cache=False),
        )
    return NonFiniteError(
        f"validation row {len(tally.tokens) + row}: the model's logits are NaN or infinite; {why}"
    )


def _count_bytes(labels: Tensor, sizes: Iterator[int], tally: RowScores) -> None:
    """The bytes of those rows of ``labels`` ``[B, T]`` that `_score` counts."""
    for scored in (labels != IGNORED).any(1).tolist():
        size = next(sizes)
        if scored:
            tally.bytes.append(size)


def _quality(tallies: dict[str, dict[str, RowScores]]) -> Quality:
    rows = {
        task: {length: asdict(tally) for length, tally in by_length.items() if tally.tokens}
        for task, by_length in tallies.items()
    }
    quality = Quality(rows={task: by_length for task, by_length in rows.items() if by_length})
    for name, column in columns(quality.rows).items():
        found = column.estimate()
        quality.values[name] = found.value
        quality.standard_errors[name] = found.stderr or 0.0
        quality.examples[name] = len(column.values)
    return quality
