"""Training and validation batches of stored text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wuneng.data.batch import Batch
from wuneng.errors import CheckpointError

__all__ = ["Rows", "TextTraining", "TextValidation", "epoch_order"]


def epoch_order(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """``[rows]``: the order of the rows in one epoch; a permutation that seed and epoch determine.

    Rows are sorted by a hash, so that the order does not depend on a library's version.
    """
    with np.errstate(over="ignore"):
        salt = _mixed(_mixed(np.uint64(seed & (2**64 - 1))) + np.uint64(epoch))
        return np.argsort(_mixed(np.arange(rows, dtype=np.uint64) ^ salt), kind="stable")


def _mixed(value: Any) -> Any:
    """SplitMix64's output function: a bijection that scatters neighbouring uint64 values."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


class Rows(Protocol):
    """Random access to rows of tokens."""

    key: str
    """Identifies the text and the tokenizer."""

    def __len__(self) -> int: ...

    def tokens_of(self, row: int) -> int:
        """Tokens of one row, without what fills it up."""
        ...

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """The rows of these numbers, in this order."""
        ...


class TextTraining:
    """Batches of shuffled rows, epoch after epoch.

    Batch number n is a function of the seed and n alone, so the position is one number.
    """

    def __init__(self, rows: Rows, batch_size: int, seed: int, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.step = 0
        self._orders: dict[int, NDArray[np.int64]] = {}
        self._last = np.zeros(0, dtype=np.int64)

    def next_batch(self) -> Batch:
        """``batch_size`` rows; at an epoch's end some are of this epoch, some of the next."""
        places = np.arange(self.step * self.batch_size, (self.step + 1) * self.batch_size)
        epochs, within = np.divmod(places, len(self.rows))
        chosen = [self._order(int(e))[w] for e, w in zip(epochs, within, strict=True)]
        self._orders = {e: o for e, o in self._orders.items() if e >= int(epochs[-1])}
        self.step += 1
        self._last = np.array(chosen, dtype=np.int64)
        return self.rows.batch(self._last)

    def tokens_of_last(self) -> int:
        """Tokens of the batch that was given last, without what fills its rows up."""
        return sum(self.rows.tokens_of(int(row)) for row in self._last)

    def state_dict(self) -> dict[str, Any]:
        """The number of the next batch, and what text it is of."""
        return {"step": self.step, "corpus": self.rows.key, "rows": len(self.rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the batch that ``state`` was taken before.

        Raises CheckpointError when the text or the tokenizer is no longer the one of that run.
        """
        now = self.state_dict()
        if any(state.get(name, now[name]) != now[name] for name in ("corpus", "rows")):
            raise CheckpointError(
                "the training text or its tokenizer has changed since this run was begun, so it "
                "cannot be continued on the same batches; start a new run, or restore the files"
            )
        self.step = int(state["step"])

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._orders:
            self._orders[epoch] = epoch_order(len(self.rows), self.seed, epoch)
        return self._orders[epoch]


class TextValidation:
    """The validation rows in order, or ``max_rows`` of them spread evenly over the text."""

    def __init__(self, rows: Rows, batch_size: int, max_rows: int | None = None) -> None:
        count = len(rows) if max_rows is None else min(max_rows, len(rows))
        self.rows = rows
        self.batch_size = batch_size
        self.chosen = np.arange(count, dtype=np.int64) * len(rows) // max(count, 1)

    def batches(self) -> Iterator[Batch]:
        """Batches of ``batch_size`` rows, the last perhaps smaller."""
        for start in range(0, len(self.chosen), self.batch_size):
            yield self.rows.batch(self.chosen[start : start + self.batch_size])
