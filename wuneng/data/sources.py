"""Sources of documents: files, a data set on disk, or a data set streamed from afar.

A source yields its documents in an order that never changes, and can say what its content is
(``content_key``), so that tokens made from it are reused only while that content is the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, Protocol

from wuneng.data.documents import read_documents, text_of
from wuneng.data.files import STDLIB, file_kind, find_files
from wuneng.data.remote import RemoteFiles, is_url
from wuneng.data.shuffled_blocks import ShuffledStream
from wuneng.data.streamed import StreamedDataset
from wuneng.errors import DataError, nearest, reason
from wuneng.foreign.regular import open_regular
from wuneng.hub.connection import asked_again, is_away, said
from wuneng.recipe.data import HubDataset, MixturePart, part_names

__all__ = [
    "DocumentSource",
    "FileSource",
    "MixedSources",
    "Source",
    "StoredDataset",
    "open_mixture",
    "open_source",
]


class DocumentSource(Protocol):
    """Documents that can be read as often as wanted."""

    field: str
    """The recipe's field, for messages."""
    name: str
    """What was read, for people."""
    share_read: float
    """Which share of it, 0 to 1, the pass over the documents that was begun last has read."""

    def documents(self) -> Iterator[str]:
        """The documents, streamed, in an order that never changes."""
        ...

    def content_key(self) -> str:
        """Equal for equal documents; different once a byte of them has changed."""
        ...

    def place(self, document: int) -> str:
        """Where the document of this number, from 1, stands: a file where there are some."""
        ...


def open_source(
    setting: list[str] | HubDataset,
    field: str,
    text_field: str,
    max_documents: int | None,
    seed: int = 0,
) -> DocumentSource | StreamedDataset:
    """The source that the recipe's ``field`` (``data.train``, ``data.validation``) describes.

    ``seed`` orders what is read while training.

    Raises DataError for missing files and data sets that cannot be had.
    """
    if isinstance(setting, HubDataset):
        loaded = _load_dataset(setting, field)
        if setting.streaming:
            given = (loaded, setting.dataset, setting.text_field, field, max_documents)
            if setting.shuffle_block > 1:
                return ShuffledStream(*given, size=setting.shuffle_block, seed=seed)
            return StreamedDataset(*given)
        return StoredDataset(loaded, setting, field, max_documents)
    remote = [source for source in setting if is_url(source)]
    if remote and len(remote) < len(setting):
        raise DataError(
            f"{field}: {remote[0]!r} is read while training and {setting[0]!r} before it: give "
            "each a part of a mixture, [{path: ...}, {path: ...}]"
        )
    if remote:
        return RemoteFiles(remote, field, text_field, max_documents, seed)
    return FileSource(setting, field, text_field, max_documents)


Source = DocumentSource | StreamedDataset


@dataclass(frozen=True)
class MixedSources:
    """Several sources, and the share of the training tokens that each is to have."""

    sources: tuple[Source, ...]
    names: tuple[str, ...]
    weights: tuple[float, ...]

    @property
    def shares(self) -> list[float]:
        """The weights, which add up to 1."""
        return [weight / sum(self.weights) for weight in self.weights]

    def trained_on(self) -> MixedSources:
        """Without those that are scored alone."""
        kept = [index for index, weight in enumerate(self.weights) if weight > 0]
        return MixedSources(
            tuple(self.sources[index] for index in kept),
            tuple(self.names[index] for index in kept),
            tuple(self.weights[index] for index in kept),
        )


def open_mixture(
    parts: list[MixturePart], text_field: str, max_documents: int | None, seed: int = 0
) -> MixedSources:
    """The sources of ``data.train`` where that is a mixture. Raises as ``open_source``."""
    sources = [
        open_source(part.path, f"data.train.{index}.path", text_field, max_documents, seed)
        for index, part in enumerate(parts)
    ]
    return MixedSources(
        tuple(sources), tuple(part_names(parts)), tuple(part.weight for part in parts)
    )


class FileSource:
    """Documents of files, in the order of ``find_files``."""

    def __init__(
        self, sources: list[str], field: str, text_field: str, max_documents: int | None
    ) -> None:
        self.field = field
        self.files = find_files(sources, field)
        self.text_field = text_field
        self.max_documents = max_documents
        self.name = _named(sources, len(self.files))
        self.share_read = 0.0

    def documents(self) -> Iterator[str]:
        """Every file's documents, one file after the other."""
        everything = (
            text
            for path, told in self._begun()
            for text in read_documents(path, self.text_field, told)
        )
        return islice(everything, self.max_documents)

    def _begun(self) -> Iterator[tuple[Path, Callable[[float], None]]]:
        """Every file when its turn comes, and whom to tell how much of it has been read."""
        sizes = [path.stat().st_size if path.exists() else 0 for path in self.files]
        before = 0
        for path, size in zip(self.files, sizes, strict=True):

            def told(share: float, before: int = before, size: int = size) -> None:
                self.share_read = (before + share * size) / max(1, sum(sizes))

            told(0.0)
            yield path, told
            before += size

    def place(self, document: int) -> str:
        """The file, found by reading again."""
        left = document
        for path in self.files:
            inside = sum(1 for _ in islice(read_documents(path, self.text_field), left))
            if inside == left:
                return f"{path}, document {left}"
            left -= inside
        return f"{self.name}, document {document}"

    def _identity(self) -> object:
        """What besides the files' bytes determines the documents."""
        return self.text_field, self.max_documents

    def content_key(self) -> str:
        """From the bytes of every file, read anew each time.

        Sizes and times of change are not trusted: both survive an edit by a careful tool, and a
        stale cache is found only after days. Reading costs about a second a gigabyte.
        """
        key = hashlib.sha256(repr(self._identity()).encode("utf-8"))
        for path in self.files:
            key.update(f"{file_kind(path)}:{_sha256(path)}".encode("ascii"))
        return key.hexdigest()


class StoredDataset:
    """Rows of a data set that ``datasets`` keeps on disk."""

    def __init__(
        self, dataset: Any, setting: HubDataset, field: str, max_documents: int | None
    ) -> None:
        self.field = field
        self.name = f"data set {setting.dataset}, split {setting.split}"
        self._dataset = dataset
        self._text_field = setting.text_field
        self._max_documents = max_documents
        self.share_read = 0.0
        if setting.text_field not in dataset.column_names:
            text_of(dict.fromkeys(dataset.column_names), setting.text_field, self.name)  # raises

    def documents(self) -> Iterator[str]:
        """The text of every row that has any."""
        return islice(filter(None, self._texts()), self._max_documents)

    def _texts(self) -> Iterator[str]:
        rows = iter(self._dataset.select_columns([self._text_field]))
        for row in count(1):
            place = f"{self.field}: {self.name}, row {row}"
            try:
                record = next(rows, None)
            except UnicodeDecodeError:
                raise DataError(f"{place}: expected UTF-8 text, got other bytes") from None
            except (OSError, ValueError, RuntimeError) as error:
                raise DataError(f"{place}: cannot be read: {reason(error)}") from None
            if record is None:
                return
            self.share_read = row / len(self._dataset)
            yield text_of(record, self._text_field, f"{self.name}, row {row}")

    def content_key(self) -> str:
        """From the documents themselves: a data set's own fingerprint follows times of change."""
        key = hashlib.sha256()
        for document in self.documents():
            content = document.encode("utf-8")
            key.update(f"{len(content)}:".encode("ascii"))
            key.update(content)
        return key.hexdigest()

    def place(self, document: int) -> str:
        """By its number among the rows that hold text."""
        return f"{self.name}, document {document}"


def _load_dataset(setting: HubDataset, field: str) -> Any:
    from datasets import load_dataset

    where = f"data set {setting.dataset!r}"
    named = {"split": setting.split, "streaming": setting.streaming}
    try:
        return asked_again(lambda: load_dataset(setting.dataset, setting.config, **named))
    except Exception as error:  # a builder may raise anything about the files it reads
        if isinstance(error, ConnectionError) or is_away(error):
            raise DataError(
                f"{field}: {where} is not in the local cache and cannot be fetched "
                f"({said(error)}); connect to the network, or name local files instead"
            ) from None
        near = nearest(setting.split, _quoted(str(error))) if "split" in str(error) else ""
        raise DataError(
            f"{field}: {where} (config {setting.config!r}, split {setting.split!r}) cannot be "
            f"loaded: {said(error)}{near}"
        ) from None


def _quoted(message: str) -> list[str]:
    """The names that a message puts in quotation marks (a data set's splits)."""
    return message.replace('"', "'").split("'")[1::2]


def _sha256(path: Path) -> str:
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _named(sources: list[str], files: int) -> str:
    shown = ", ".join("Python standard library" if s == STDLIB else s for s in sources[:3])
    more = f" and {len(sources) - 3} more" if len(sources) > 3 else ""
    return f"{shown}{more}" + ("" if files == 1 else f" ({files} files)")
