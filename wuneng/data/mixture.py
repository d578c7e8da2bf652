"""Training batches of several sources of text, each with its share of the tokens.

The next row is of the source that is furthest behind its share: which one depends on nothing but
the weights and the tokens that each has given. A source that is used up begins again, in another
order if its rows are shuffled, whatever the others do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from wuneng.data.batch import Batch
from wuneng.errors import CheckpointError

__all__ = ["MixedTraining", "MixedValidation", "RowSource", "ValidationPart", "joined"]


class RowSource(Protocol):
    """Training data whose batches are one row each."""

    vocab_size: int

    def next_batch(self) -> Batch:
        """The next row, ``[1, T]``."""
        ...

    def tokens_of_last(self) -> int:
        """Tokens of the row that ``next_batch`` gave last, without what fills it up."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """As ``TrainingData``."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As ``TrainingData``."""
        ...


class MixedTraining:
    """Batches of ``batch_size`` rows, of ``sources`` in proportion to ``weights``."""

    def __init__(
        self, sources: Sequence[RowSource], weights: Sequence[float], batch_size: int
    ) -> None:
        self.vocab_size = max(source.vocab_size for source in sources)
        self.sources = list(sources)
        self.weights = list(weights)
        self.batch_size = batch_size
        self.given = [0] * len(self.sources)
        """Tokens that each source has given."""

    def next_batch(self) -> Batch:
        """The next ``batch_size`` rows. Raises what a source raises."""
        return joined([self._next_row() for _ in range(self.batch_size)])

    def _next_row(self) -> Batch:
        behind = [given / weight for given, weight in zip(self.given, self.weights, strict=True)]
        chosen = behind.index(min(behind))  # the first of equals
        row = self.sources[chosen].next_batch()
        self.given[chosen] += self.sources[chosen].tokens_of_last()
        return row

    def state_dict(self) -> dict[str, Any]:
        """What each source has given, and where it goes on."""
        states = [source.state_dict() for source in self.sources]
        return {"given": list(self.given), "weights": list(self.weights), "sources": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the batch that ``state`` was taken before.

        Raises CheckpointError when the sources, their text or their weights have changed.
        """
        if state.get("weights") != self.weights:
            raise CheckpointError(
                "data.train is another mixture than when this run was begun, so it cannot be "
                "continued on the same batches; start a new run, or restore the sources and weights"
            )
        for source, own in zip(self.sources, state["sources"], strict=True):
            source.load_state_dict(own)
        self.given = [int(given) for given in state["given"]]


@dataclass(frozen=True)
class ValidationPart:
    """The validation rows of one source; ``validation`` as ``ValidationData``.

    What is not ``trained`` on has a figure of its own, and is no part of that of the whole.
    """

    name: str
    validation: Any
    trained: bool = True


class MixedValidation:
    """The validation rows of several sources, source by source."""

    def __init__(self, parts: Sequence[ValidationPart]) -> None:
        self.parts = list(parts)

    def batches(self) -> Iterator[Batch]:
        """Every source's batches, with its name on them (of what is not trained on, in the name of
        the task)."""
        for part in self.parts:
            for batch in part.validation.batches():
                if part.trained:
                    yield replace(batch, source=part.name)
                else:
                    yield replace(batch, task=f"{batch.task}.{part.name}")


def joined(rows: Sequence[Batch]) -> Batch:
    """Batches of the same task and length as one, their rows in order."""
    documents = [row.document_ids for row in rows if row.document_ids is not None]
    return replace(
        rows[0],
        input_ids=torch.cat([row.input_ids for row in rows]),
        labels=torch.cat([row.labels for row in rows]),
        document_ids=torch.cat(documents) if documents else None,
        row_bytes=tuple(int(n) for n in np.concatenate([row.row_bytes for row in rows])),
    )
