"""Stretches of a corpus that are trained on or scored: whole documents, or the parts of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wuneng.data.batch import IGNORED
from wuneng.data.encoding import Encoder
from wuneng.data.token_cache import Corpus

__all__ = ["Segments", "cut_document", "segments_of"]


@dataclass(frozen=True)
class Segments:
    """K stretches of a corpus that are read one after the other; neither side of a boundary sees
    the other. Mostly whole documents."""

    starts: NDArray[np.int64]
    """``[K]`` first token of each, in the corpus."""
    lengths: NDArray[np.int64]
    """``[K]`` tokens of each."""
    last_labels: NDArray[np.int64]
    """``[K]`` label of each one's last token: the end mark, or IGNORED where nothing is known."""
    corrections: NDArray[np.int64]
    """``[K]`` bytes to add when the label of the first token is scored (see ``Corpus``)."""

    @property
    def tokens(self) -> int:
        """Tokens in all."""
        return int(self.lengths.sum())


def segments_of(
    corpus: Corpus, encoder: Encoder, chosen: NDArray[np.bool_] | None = None
) -> Segments:
    """The whole documents of ``corpus``, or those where ``chosen`` ``[D]`` is true."""
    documents = np.flatnonzero(chosen) if chosen is not None else np.arange(len(corpus.digests))
    starts = np.asarray(corpus.offsets[documents])
    return Segments(
        starts=starts,
        lengths=np.asarray(corpus.offsets[documents + 1]) - starts,
        last_labels=np.full(len(documents), _label_of_last_token(encoder), dtype=np.int64),
        corrections=np.asarray(corpus.corrections[documents]),
    )


def cut_document(corpus: Corpus, encoder: Encoder, fraction: float) -> tuple[Segments, Segments]:
    """(training, validation) for a corpus of one document, perhaps repeated: its head and its tail.

    The cut is behind the last line end before ``1 - fraction`` of the first copy's tokens; where no
    line ends nearby (the tail would more than double), it is right there.
    """
    end = int(corpus.offsets[1])
    target = min(max(2, int(end * (1.0 - fraction))), end - 1)
    nearby = max(1, int(end * (1.0 - 2 * fraction)))
    line_ends = np.flatnonzero(encoder.spelling.ends_line[corpus.tokens[nearby:target]])
    cut = nearby + int(line_ends[-1]) + 1 if len(line_ends) else target
    head = _stretch(0, cut, IGNORED, int(corpus.corrections[0]))
    tail = _stretch(cut, end, _label_of_last_token(encoder), 0)
    return head, tail


def _label_of_last_token(encoder: Encoder) -> int:
    # With two marks the last token is the end mark itself, and nothing follows it.
    return IGNORED if encoder.two_marks else encoder.end


def _stretch(start: int, end: int, last_label: int, correction: int) -> Segments:
    columns: Sequence[int] = (start, end - start, last_label, correction)
    starts, lengths, last_labels, corrections = (np.array([c], dtype=np.int64) for c in columns)
    return Segments(starts, lengths, last_labels, corrections)
