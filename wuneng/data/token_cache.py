"""A source of documents, tokenised once and kept as memory-mapped arrays.

The key of an entry is what determines its tokens: the content of the source, the tokenizer and the
version of this format. Where it is read from, and when the files were touched, does not matter.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wuneng.data.cache_directory import is_intact, publish
from wuneng.data.encoding import Encoder
from wuneng.data.sources import DocumentSource
from wuneng.data.split import document_digest
from wuneng.errors import DataError

__all__ = ["Corpus", "tokenized"]

_VERSION = 2
_TOGETHER_DOCUMENTS = 256
_TOGETHER_CHARACTERS = 1 << 20
_PER_DOCUMENT = ("offsets", "digests", "byte_counts", "corrections")


@dataclass(frozen=True)
class Corpus:
    """Tokenised documents; D of them, with N tokens in all."""

    tokens: NDArray[np.unsignedinteger]
    """``[N]`` uint16 or uint32, memory-mapped; document after document, marks included."""
    offsets: NDArray[np.int64]
    """``[D + 1]``: document d is ``tokens[offsets[d]:offsets[d + 1]]``."""
    digests: NDArray[np.uint64]
    """``[D]`` 64-bit hash of each document's text."""
    byte_counts: NDArray[np.int64]
    """``[D]`` UTF-8 bytes of each document."""
    corrections: NDArray[np.int64]
    """``[D]`` byte count less the sum of what the document's tokens spell; 0 unless the tokenizer
    changes the text."""
    key: str
    """Identifies the content and the tokenizer."""


def tokenized(source: DocumentSource, encoder: Encoder, root: Path) -> Corpus:
    """The tokens of ``source``, from the cache below ``root`` or made now and kept there.

    Raises DataError when the source has no text or changes while it is read, DiskError when the
    cache cannot be written.
    """
    content = source.content_key()
    identity = f"{_VERSION}\0{content}\0{encoder.digest}\0{encoder.dtype}"
    key = hashlib.sha256(identity.encode("utf-8")).hexdigest()
    entry = root / "tokens" / key[:40]
    if not is_intact(entry):

        def fill(directory: Path) -> None:
            _write(directory, source, encoder)
            if source.content_key() != content:
                raise DataError(f"{source.field}: {source.name} changed while it was being read")

        publish(entry, fill)
    return _open(entry, encoder, key)


def _open(entry: Path, encoder: Encoder, key: str) -> Corpus:
    offsets, digests, byte_counts, corrections = (
        np.load(entry / f"{name}.npy", mmap_mode="r") for name in _PER_DOCUMENT
    )
    tokens = np.memmap(entry / "tokens.bin", dtype=encoder.dtype, mode="r")
    return Corpus(tokens, offsets, digests, byte_counts, corrections, key)


def _write(directory: Path, source: DocumentSource, encoder: Encoder) -> None:
    offsets, digests = array("q", [0]), array("Q")
    byte_counts, corrections = array("q"), array("q")
    with (directory / "tokens.bin").open("wb") as file:
        for documents in _together(source.documents()):
            for document, tokens in zip(documents, encoder.encode(documents), strict=True):
                file.write(tokens.tobytes())
                offsets.append(offsets[-1] + len(tokens))
                digests.append(document_digest(document))
                byte_counts.append(len(document.encode("utf-8")))
                spelled = int(encoder.spelling.lengths[tokens].sum())
                corrections.append(byte_counts[-1] - spelled)
    if not byte_counts:
        raise DataError(f"{source.field}: no text in {source.name}")
    for name, values in zip(
        _PER_DOCUMENT, (offsets, digests, byte_counts, corrections), strict=True
    ):
        np.save(directory / f"{name}.npy", np.array(values))


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
