"""Documents tokenised by several threads, in their order.

The tokenizer works outside Python's lock, so threads keep that many cores busy, share one copy of
its vocabulary, and are gone when the process is. What they do is cut where ``encoding`` cuts long
documents: the tokens are those of one thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from wuneng.data.encoding import Encoder

__all__ = ["encoded"]

_TOGETHER_DOCUMENTS = 256
_TOGETHER_CHARACTERS = 1 << 20

Tokens = NDArray[np.unsignedinteger]
_Chunk = list[tuple[int, str]]
_Waiting = tuple[list[str], list[Future[list[Tokens]]]]


def encoded(
    documents: Iterable[str], encoder: Encoder, workers: int
) -> Iterator[list[tuple[str, Tokens]]]:
    """Groups of documents with the tokens ``[n]`` of each, marks included.

    At most ``workers`` threads tokenise; with a tokenizer of bytes, whose work is a copy, none.

    Raises:
        UnencodableError: the tokenizer fails over a document.
    """
    groups = _together(documents)
    if encoder.spells_bytes:
        yield from (list(zip(group, encoder.encode(group), strict=True)) for group in groups)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="tokenising")
    try:
        yield from _in_order(groups, encoder, pool, workers)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(
    groups: Iterator[list[str]], encoder: Encoder, pool: ThreadPoolExecutor, workers: int
) -> Iterator[list[tuple[str, Tokens]]]:
    waiting: deque[_Waiting] = deque()
    first = 1
    for group in groups:
        chunks = _chunks(group, first, encoder)
        waiting.append((group, [pool.submit(encoder.encode_pieces, chunk) for chunk in chunks]))
        first += len(group)
        # So many are ready or being made that no thread runs out of work.
        while sum(len(futures) for _, futures in waiting) > 2 * workers:
            yield _finished(waiting.popleft(), encoder)
    while waiting:
        yield _finished(waiting.popleft(), encoder)


def _finished(waited: _Waiting, encoder: Encoder) -> list[tuple[str, Tokens]]:
    group, futures = waited
    pieces = iter([tokens for future in futures for tokens in future.result()])
    return [
        (text, encoder.marked(np.concatenate([next(pieces) for _ in encoder.pieces(text)])))
        for text in group
    ]


def _chunks(group: list[str], first: int, encoder: Encoder) -> Iterator[_Chunk]:
    """The pieces of a group's documents, each with its document's number: as much at a time as is
    worth a thread's while, so that one long document is the work of several."""
    chunk: _Chunk = []
    characters = 0
    for number, document in enumerate(group, start=first):
        for piece in encoder.pieces(document):
            chunk.append((number, piece))
            characters += len(piece)
            if characters >= _TOGETHER_CHARACTERS // 4:
                yield chunk
                chunk, characters = [], 0
    if chunk:
        yield chunk


def _together(documents: Iterable[str]) -> Iterator[list[str]]:
    """Documents in groups that are worth tokenising at once and fit in memory."""
    group: list[str] = []
    characters = 0
    for document in documents:
        group.append(document)
        characters += len(document)
        if len(group) >= _TOGETHER_DOCUMENTS or characters >= _TOGETHER_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group
