"""Finite validation text from a stream: enough documents from its beginning, read once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

from wuneng.data.split import document_digest, falls_in_validation
from wuneng.data.streamed import StreamedDataset
from wuneng.errors import DataError

__all__ = ["SampledDocuments", "held_out_sample", "leading_sample"]


class SampledDocuments:
    """A few documents in memory, as a source."""

    def __init__(self, documents: list[str], name: str, field: str) -> None:
        self.field = field
        self.name = name
        self.share_read = 1.0  # to make the sample, which was the slow part
        self._documents = documents

    def documents(self) -> Iterator[str]:
        """The documents in order."""
        return iter(self._documents)

    def content_key(self) -> str:
        """From the documents themselves."""
        digests = [hashlib.sha256(text.encode("utf-8")).hexdigest() for text in self._documents]
        return hashlib.sha256("".join(digests).encode("ascii")).hexdigest()

    def place(self, document: int) -> str:
        """By its number in the sample."""
        return f"{self.name}, document {document}"


def held_out_sample(source: StreamedDataset, fraction: float, characters: int) -> SampledDocuments:
    """The first held-out documents of a stream, until they have ``characters`` characters.

    Reads about ``1 / fraction`` times as much. DataError when the stream has none.
    """

    def is_out(text: str) -> bool:
        return bool(falls_in_validation(np.array([document_digest(text)], np.uint64), fraction)[0])

    chosen = (text for text in source.documents() if is_out(text))
    how = f"held out by hash, {fraction:.3g} of {source.name}"
    return _sample(chosen, characters, how, source.field)


def leading_sample(source: StreamedDataset, characters: int) -> SampledDocuments:
    """The first documents of a stream, until they have ``characters`` characters."""
    return _sample(source.documents(), characters, f"start of {source.name}", source.field)


def _sample(documents: Iterable[str], characters: int, name: str, field: str) -> SampledDocuments:
    chosen: list[str] = []
    left = characters
    for text in documents:
        chosen.append(text)
        left -= len(text)
        if left <= 0:
            break
    if not chosen:
        raise DataError(f"{field}: no validation text: {name} yields no document")
    return SampledDocuments(chosen, name, field)
