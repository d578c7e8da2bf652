"""Segments laid end to end and cut into rows of T tokens.

    stream   | start a b c | start d e | start f g h i ...
    row 0      start a b c   start d
    labels     a     b c end d     e        the token that follows in the same document
    document   0     0 0 0   1     1        counted from 0 in every row

Every token is the input of exactly one position, so an epoch sees each exactly once. A label never
lies in another document: the last position of a document predicts the end mark, which is what the
next document begins with when the tokenizer has one mark for both (see ``encoding``). A document
that a row's end cuts goes on in the next row as if it began there. What is missing in the last row
is filled with the end mark, unscored and a document of its own.

With ``boundaries=False`` the tokens and labels are the same and the rows are one stream each:
attention and state cross from document to document.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from wuneng.data.batch import IGNORED, Batch
from wuneng.data.encoding import Encoder
from wuneng.data.segments import Segments
from wuneng.data.token_cache import Corpus

__all__ = ["TASK", "PackedRows"]

#: The task name of batches of text.
TASK = "text"


class PackedRows:
    """Random access to the rows of some segments of a corpus."""

    def __init__(
        self,
        corpus: Corpus,
        segments: Segments,
        encoder: Encoder,
        sequence_length: int,
        *,
        boundaries: bool = True,
    ) -> None:
        self.corpus = corpus
        self.key = corpus.key
        self.segments = segments
        self.sequence_length = sequence_length
        self.boundaries = boundaries
        self.tokens = segments.tokens
        self._filler = encoder.end
        self._lengths = encoder.spelling.lengths
        self._ends = np.cumsum(segments.lengths)  # where each segment ends in the stream

    def __len__(self) -> int:
        """Rows, the last and perhaps shorter one included."""
        return -(-self.tokens // self.sequence_length)

    def tokens_of(self, row: int) -> int:
        """T, or fewer in the last row."""
        return min(self.sequence_length, self.tokens - row * self.sequence_length)

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """The rows of these numbers, in this order, as a Batch of ``[len(rows), T]``.

        RunError where the kept tokens have been cut meanwhile.
        """
        self.corpus.check_whole()
        shape = (len(rows), self.sequence_length)
        inputs = np.full(shape, self._filler, dtype=np.int64)
        labels = np.full(shape, IGNORED, dtype=np.int64)
        documents = np.empty(shape, dtype=np.int32)
        row_bytes = tuple(
            self._fill(int(row), inputs[b], labels[b], documents[b]) for b, row in enumerate(rows)
        )
        return Batch(
            input_ids=torch.from_numpy(inputs),
            labels=torch.from_numpy(labels),
            document_ids=torch.from_numpy(documents) if self.boundaries else None,
            task=TASK,
            length=self.sequence_length,
            row_bytes=row_bytes,
        )

    def _fill(
        self,
        row: int,
        inputs: NDArray[np.int64],
        labels: NDArray[np.int64],
        documents: NDArray[np.int32],
    ) -> int:
        """Write row ``row`` into the three arrays ``[T]``; returns the bytes its labels spell."""
        begin = row * self.sequence_length
        end = min(begin + self.sequence_length, self.tokens)
        first, last = np.searchsorted(self._ends, [begin, end - 1], side="right")
        piece = slice(int(first), int(last) + 1)
        # The parts of this row, one per segment, as places in the stream and in the corpus.
        stream_ends = np.minimum(self._ends[piece], end)
        stream_starts = np.maximum(self._ends[piece] - self.segments.lengths[piece], begin)
        sizes = stream_ends - stream_starts
        to_corpus = self.segments.starts[piece] + self.segments.lengths[piece] - self._ends[piece]
        places = np.arange(begin, end) + np.repeat(to_corpus, sizes)

        n = end - begin
        tokens = self.corpus.tokens
        inputs[:n] = tokens[places]
        following = np.minimum(places + 1, len(tokens) - 1)
        labels[:n] = tokens[following]
        ended = stream_ends == self._ends[piece]
        labels[np.cumsum(sizes)[ended] - 1] = self.segments.last_labels[piece][ended]
        documents[:n] = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        documents[n:] = len(sizes)

        begun = stream_starts == self._ends[piece] - self.segments.lengths[piece]
        scored = labels[:n][labels[:n] != IGNORED]
        corrected = self.segments.corrections[piece][begun].sum()
        return int(self._lengths[scored].sum() + corrected)
