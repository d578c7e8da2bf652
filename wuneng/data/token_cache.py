"""A source of documents, tokenised once and kept as memory-mapped arrays.

The key of an entry is what determines its tokens: the content of the source, the tokenizer and the
version of this format. Where it is read from, and when the files were touched, does not matter.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wuneng.data.cache_directory import is_intact
from wuneng.data.encoding import Encoder, UnencodableError
from wuneng.data.making import made_once
from wuneng.data.parallel_encoding import Tokens, encoded
from wuneng.data.sources import DocumentSource
from wuneng.data.split import document_digest
from wuneng.device import usable_cores
from wuneng.errors import DataError, RunError, reason

__all__ = ["Corpus", "Watch", "cached", "tokenized"]

_VERSION = 2

#: Told what is read and the share of it, 0 to 1, that has been.
Watch = Callable[[str, float], None]

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

    def check_whole(self) -> None:
        """RunError where the file of the tokens has become shorter, or is gone from under a file
        system that does not keep it: a read beyond its end would end this process by a signal."""
        file = getattr(self.tokens, "filename", None)
        if file is None:
            return
        try:
            size = os.stat(file).st_size
        except FileNotFoundError:
            return  # deleted, as `wuneng cache clear` does: what is mapped stays
        except OSError as error:
            raise RunError(f"{file}: the tokens cannot be read: {reason(error)}") from None
        if size < self.tokens.nbytes:
            raise RunError(
                f"{file}: expected {self.tokens.nbytes:,} bytes of tokens, got {size:,}: something "
                "has cut the file while it was in use. Run the same command again: the text is "
                "tokenised anew, and training goes on from its checkpoint"
            )


def tokenized(
    source: DocumentSource,
    encoder: Encoder,
    root: Path,
    *,
    workers: int | None = None,
    watch: Watch | None = None,
) -> Corpus:
    """The tokens of ``source``, from the cache below ``root`` or made now and kept there: by one
    process, however many want them at the same time.

    Args:
        workers: threads that tokenise; default one for each core that the process may use.
        watch: told how far it is, if anything has to be tokenised.

    Raises DataError when the source has no text or changes while it is read, DiskError when the
    cache cannot be written.
    """
    content, key, entry = _entry(source, encoder, root)

    def fill(directory: Path) -> None:
        _write(directory, source, encoder, workers or usable_cores(), watch)
        if source.content_key() != content:
            raise DataError(f"{source.field}: {source.name} changed while it was being read")

    made_once(entry, fill)
    return _open(entry, encoder, key)


def cached(source: DocumentSource, encoder: Encoder, root: Path) -> Corpus | None:
    """As ``tokenized``, but None where the tokens are not in the cache."""
    _, key, entry = _entry(source, encoder, root)
    return _open(entry, encoder, key) if is_intact(entry) else None


def _entry(source: DocumentSource, encoder: Encoder, root: Path) -> tuple[str, str, Path]:
    """The key of the source's content, that of its tokens, and where they are kept."""
    content = source.content_key()
    identity = f"{_VERSION}\0{content}\0{encoder.digest}\0{encoder.dtype}"
    key = hashlib.sha256(identity.encode("utf-8")).hexdigest()
    return content, key, root / "tokens" / key[:40]


def _open(entry: Path, encoder: Encoder, key: str) -> Corpus:
    offsets, digests, byte_counts, corrections = (
        np.load(entry / f"{name}.npy", mmap_mode="r") for name in _PER_DOCUMENT
    )
    tokens = np.memmap(entry / "tokens.bin", dtype=encoder.dtype, mode="r")
    return Corpus(tokens, offsets, digests, byte_counts, corrections, key)


def _write(
    directory: Path,
    source: DocumentSource,
    encoder: Encoder,
    workers: int,
    watch: Watch | None,
) -> None:
    offsets, digests = array("q", [0]), array("Q")
    byte_counts, corrections = array("q"), array("q")
    with (directory / "tokens.bin").open("wb") as file:
        for group in _named(encoded(source.documents(), encoder, workers), source):
            if watch is not None:
                watch(source.name, source.share_read)
            for document, tokens in group:
                file.write(tokens.tobytes())
                offsets.append(offsets[-1] + len(tokens))
                digests.append(document_digest(document))
                byte_counts.append(len(document.encode("utf-8")))
                spelled = int(encoder.spelling.lengths[tokens].sum())
                corrections.append(byte_counts[-1] - spelled)
    if not byte_counts:
        raise DataError(f"{source.field}: no text in {source.name}")
    if watch is not None:
        watch(source.name, 1.0)
    for name, values in zip(
        _PER_DOCUMENT, (offsets, digests, byte_counts, corrections), strict=True
    ):
        np.save(directory / f"{name}.npy", np.array(values))


Group = list[tuple[str, Tokens]]


def _named(groups: Iterable[Group], source: DocumentSource) -> Iterator[Group]:
    """``groups``; what cannot be encoded of them is said with where it was read."""
    try:
        yield from groups
    except UnencodableError as error:
        raise DataError(f"{source.field}: {source.place(error.document)}: {error}") from None
