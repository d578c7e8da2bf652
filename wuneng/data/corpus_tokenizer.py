"""The tokenizer that a recipe asks for, trained on its own training text if it says so."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wuneng.data.cache_directory import is_intact, publish
from wuneng.data.making import made_once
from wuneng.data.sources import DocumentSource, MixedSources, Source
from wuneng.data.split import choose_validation, document_digest, falls_in_validation
from wuneng.data.streamed import StreamedDataset
from wuneng.data.tokenizer import load_tokenizer, train_byte_pair_tokenizer
from wuneng.distributed.processes import ALONE, Processes
from wuneng.recipe.data import TextData, TrainedTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["choose_tokenizer"]

_VERSION = 1
_FIELD = "data.tokenizer"


def choose_tokenizer(
    data: TextData,
    train: Source | MixedSources,
    validation: Source | None,
    root: Path,
    processes: Processes = ALONE,
    learned: Path | None = None,
) -> PreTrainedTokenizerFast:
    """Load ``data.tokenizer``, or learn it from the training documents (kept below ``root``).

    Validation text is never learned from. A stream is read in the first of ``processes``, which all
    call this, and what it taught is kept at ``learned``: tomorrow it may teach another one. Raises
    DataError when there is no such tokenizer, DiskError when it cannot be kept.
    """
    if not isinstance(data.tokenizer, TrainedTokenizer):
        return load_tokenizer(data.tokenizer, _FIELD)
    size = data.tokenizer.train_bpe
    train = train.trained_on() if isinstance(train, MixedSources) else train
    sources = train.sources if isinstance(train, MixedSources) else (train,)
    stored = [source for source in sources if not isinstance(source, StreamedDataset)]
    if len(stored) < len(sources) or isinstance(validation, StreamedDataset):
        # What a stream holds is known by reading it only: there is nothing to look up in a cache.
        learn = partial(_learned, data, train, validation, size)
        return processes.telling()(learn if learned is None else partial(_kept, learned, learn))
    keys = [source.content_key() for source in stored]
    content = (keys, train.shares) if isinstance(train, MixedSources) else keys[0]
    parts = (_VERSION, size, content, data.validation_fraction)
    other = validation.content_key() if validation else ""
    key = hashlib.sha256(repr((*parts, other)).encode("utf-8")).hexdigest()
    entry = root / "tokenizers" / key[:40]
    learn = partial(_learned, data, train, validation, size)
    made_once(entry, lambda place: _save(learn(), place))
    return load_tokenizer(str(entry), _FIELD)


def _kept(place: Path, learn: Callable[[], PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    """The one at ``place``, learned if nobody has yet: of several who do the first is kept."""
    if not is_intact(place):
        publish(place, lambda directory: _save(learn(), directory))
    return load_tokenizer(str(place), _FIELD)


def _learned(
    data: TextData,
    train: Source | MixedSources,
    validation: Source | None,
    size: int,
) -> PreTrainedTokenizerFast:
    mixed = train if isinstance(train, MixedSources) else MixedSources((train,), ("",), (1.0,))
    documents = _in_proportion(
        [
            _training_documents(source, validation, data.validation_fraction)
            for source in mixed.sources
        ],
        mixed.weights,
    )
    return train_byte_pair_tokenizer(documents, size, f"{_FIELD}.train_bpe")


def _in_proportion(sources: Sequence[Iterator[str]], weights: Sequence[float]) -> Iterator[str]:
    """Documents of all sources, so that each gives its share of the characters until it ends."""
    given = dict.fromkeys(range(len(sources)), 0)
    while given:
        behind = min(given, key=lambda index: given[index] / weights[index])
        text = next(sources[behind], None)
        if text is None:
            del given[behind]
        else:
            given[behind] += len(text)
            yield text


def _training_documents(
    train: Source,
    validation: Source | None,
    fraction: float,
) -> Iterator[str]:
    """The documents of ``train`` that training will see."""
    if isinstance(validation, StreamedDataset):
        yield from train.documents()  # reading all of the other stream could take days
        return
    if isinstance(train, StreamedDataset) and validation is None:
        for text in train.documents():
            if not falls_in_validation(np.array([document_digest(text)], np.uint64), fraction)[0]:
                yield text
        return
    excluded, single = _excluded(train, validation, fraction)
    for text in train.documents():
        if single:
            yield text[: int(len(text) * (1.0 - fraction))]
            return
        if document_digest(text) not in excluded:
            yield text


def _excluded(
    train: Source, validation: DocumentSource | None, fraction: float
) -> tuple[set[int], bool]:
    """Hashes of the documents that are held out, and whether ``train`` is one document only."""
    if validation is not None:
        return {document_digest(text) for text in validation.documents()}, False
    digests = np.array([document_digest(text) for text in train.documents()], dtype=np.uint64)
    if len(np.unique(digests)) < 2:
        return set(), True
    return set(digests[choose_validation(digests, fraction)].tolist()), False


def _save(tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    tokenizer.save_pretrained(str(directory))
