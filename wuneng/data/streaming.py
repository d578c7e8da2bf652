"""Training batches of a streamed data set, packed as in ``packing``, in the data set's own order.

Documents are tokenised in groups. The position is where the first group with unused tokens begins,
and how many of its tokens are used: resuming reads that group again and drops those tokens.

Of several processes that train together the first reads and tokenises, and tells the others the
tokens: every process lays out the same batches, and no document is fetched or tokenised twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wuneng.data.batch import IGNORED, Batch
from wuneng.data.encoding import Encoder
from wuneng.data.packing import TASK
from wuneng.data.split import document_digest
from wuneng.data.streamed import Position, StreamedDataset
from wuneng.distributed.processes import ALONE, Once, Processes
from wuneng.errors import CheckpointError, DataError

__all__ = ["StreamedTraining"]

_GROUP_DOCUMENTS = 64
_START: Position = {"rows": 0}


@dataclass(frozen=True)
class _Encoded:
    """Some documents as tokens: what one process tells the others."""

    tokens: list[NDArray[np.unsignedinteger]]
    """One array for each document, marks included."""
    written: NDArray[np.int64]
    """UTF-8 bytes of each document."""
    behind: Position
    """Where reading goes on after them."""


@dataclass
class _Group:
    """Some documents laid end to end: n tokens."""

    begins: Position
    epoch: int
    inputs: NDArray[np.int64]
    labels: NDArray[np.int64]
    spelled: NDArray[np.int64]
    """``[n]`` bytes that each label spells."""
    begun: NDArray[np.int64]
    """``[n]`` 1 at the first token of a document, else 0."""


class StreamedTraining:
    """Endless batches ``[batch_size, sequence_length]``; a new pass begins where one ends.

    ``wanted(digest)`` says whether a document is for training, from the hash of its text. All of
    ``processes`` make one at the same time, and take as many batches of it.
    """

    def __init__(
        self,
        source: StreamedDataset,
        encoder: Encoder,
        sequence_length: int,
        batch_size: int,
        wanted: Callable[[int], bool],
        *,
        boundaries: bool = True,
        processes: Processes = ALONE,
    ) -> None:
        self.vocab_size = encoder.vocab_size
        self.source = source
        self.encoder = encoder
        self.shape = (batch_size, sequence_length)
        self.wanted = wanted
        self.boundaries = boundaries
        self._processes = processes
        self._go_to(_START, epoch=0, used=0)

    def next_batch(self) -> Batch:
        """The next ``batch_size * sequence_length`` tokens. DataError when nothing can be read."""
        parts = list(self._take(self.shape[0] * self.shape[1]))
        inputs, labels, spelled, begun = (
            np.concatenate(column).reshape(self.shape) for column in zip(*parts, strict=True)
        )
        # A row's first token belongs to its document 0, whether or not the document begins there.
        documents = np.cumsum(begun, axis=1) - begun[:, :1]
        return Batch(
            input_ids=torch.from_numpy(inputs),
            labels=torch.from_numpy(labels),
            document_ids=torch.from_numpy(documents.astype(np.int32)) if self.boundaries else None,
            task=TASK,
            length=self.shape[1],
            row_bytes=tuple(spelled.sum(axis=1).tolist()),
        )

    def tokens_of_last(self) -> int:
        """Tokens of a batch: its rows are full."""
        return self.shape[0] * self.shape[1]

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch begins, and of which tokens it is."""
        begins = (self._epoch, self._position, 0)
        if self._pending:
            group = self._pending[0]
            begins = (group.epoch, group.begins, self._used)
        found = dict(zip(("epoch", "position", "used"), begins, strict=True))
        return {**found, "tokenizer": self.encoder.digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where ``state`` was taken; nothing is read before the next batch.

        Raises CheckpointError when the tokenizer, which may be learned from the stream, is no
        longer the one of that run.
        """
        if state.get("tokenizer", self.encoder.digest) != self.encoder.digest:  # older: not said
            raise CheckpointError(
                "data.tokenizer makes other tokens of a text than when this run was begun (one "
                "learned from a stream does where the stream has changed), so it cannot be "
                "continued; start a new run, or restore the tokenizer"
            )
        self._go_to(state["position"], int(state["epoch"]), int(state["used"]))

    def _go_to(self, position: Position, epoch: int, used: int) -> None:
        self._position = position
        self._epoch = epoch
        self._used = used
        self._pending: deque[_Group] = deque()
        self._groups = self._read_groups(self._processes.telling())

    def _take(self, count: int) -> Iterator[tuple[NDArray[np.int64], ...]]:
        """Use up the next ``count`` tokens, as parts of (inputs, labels, spelled, begun)."""
        while count:
            if not self._pending:
                self._pending.append(next(self._groups))
            group = self._pending[0]
            piece = slice(self._used, self._used + count)
            taken = (group.inputs[piece], group.labels[piece])
            yield (*taken, group.spelled[piece], group.begun[piece])
            count -= len(taken[0])
            self._used += len(taken[0])
            if self._used >= len(group.inputs):
                self._pending.popleft()
                self._used = 0

    def _read_groups(self, once: Once) -> Iterator[_Group]:
        """Groups from the current position on, pass after pass."""
        while True:
            from_start = self._position["rows"] == 0
            anything = False
            read = partial(next, self._read_pass(), None)
            while (found := once(read)) is not None:
                group = self._packed(found)
                self._position = found.behind
                anything = True
                yield group
            if from_start and not anything:
                raise DataError(f"{self.source.field}: no training text in {self.source.name}")
            self._epoch += 1
            self._position = {**_START, "pass": self._epoch}

    def _read_pass(self) -> Iterator[_Encoded]:
        """Groups of documents of one pass; asked of one process alone."""
        documents: list[str] = []
        behind = self._position
        for text, behind in self.source.documents_from(self._position):
            if self.wanted(document_digest(text)):
                documents.append(text)
            if len(documents) == _GROUP_DOCUMENTS:
                yield self._encoded(documents, behind)
                documents = []
        if documents:
            yield self._encoded(documents, behind)

    def _encoded(self, documents: list[str], behind: Position) -> _Encoded:
        written = np.array([len(text.encode("utf-8")) for text in documents])
        return _Encoded(self.encoder.encode(documents), written, behind)

    def _packed(self, found: _Encoded) -> _Group:
        sizes = np.array([len(tokens) for tokens in found.tokens])
        firsts = np.cumsum(sizes) - sizes
        inputs = np.concatenate(found.tokens).astype(np.int64)
        labels = np.roll(inputs, -1)
        labels[firsts + sizes - 1] = IGNORED if self.encoder.two_marks else self.encoder.end
        lengths = self.encoder.spelling.lengths
        spelled = np.where(labels == IGNORED, 0, lengths[np.maximum(labels, 0)])
        spelled[firsts] += found.written - np.add.reduceat(lengths[inputs], firsts)
        begun = np.zeros_like(inputs)
        begun[firsts] = 1
        return _Group(self._position, self._epoch, inputs, labels, spelled, begun)
