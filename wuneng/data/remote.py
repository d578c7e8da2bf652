"""Files in object storage or on the web, read through fsspec while training, with exact position.

Files are read in an order that seed and pass determine, and within it blocks of documents are
shuffled.

A store that does not answer is asked again a few times, later each time.
"""

from __future__ import annotations

import gzip
import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import PurePosixPath
from typing import IO, Any, cast

from wuneng.data.documents import json_lines, parquet_texts, text_of, whole_text
from wuneng.data.files import file_kind, readable_kinds
from wuneng.data.shuffled_blocks import shuffled_blocks
from wuneng.data.streamed import Position, StreamedDataset
from wuneng.data.text_batches import epoch_order
from wuneng.errors import DataError, RunError, WuNengError, reason
from wuneng.hub.connection import WAITS

__all__ = ["RemoteFiles", "is_url"]

#: Documents that are shuffled together.
_BLOCK = 1024


def is_url(source: str) -> bool:
    """Whether a string of ``data.train`` names something that fsspec is to open."""
    return "://" in source


class RemoteFiles(StreamedDataset):
    """The documents of files that URLs name (globs and directories where the store lists them).

    Raises DataError for a protocol whose package is not installed and for files that are not
    there; RunError for a store that cannot be reached.
    """

    order = "files shuffled, and documents within blocks"

    def __init__(
        self, urls: list[str], field: str, text_field: str, max_documents: int | None, seed: int
    ) -> None:
        self.field = field
        self.name = ", ".join(urls[:3]) + (f" and {len(urls) - 3} more" if urls[3:] else "")
        self.max_documents = max_documents
        self._text_field = text_field
        self._seed = seed
        self._files = [file for url in urls for file in _found(url, field)]

    def documents_from(self, position: Position) -> Iterator[tuple[str, Position]]:
        """The documents of one pass from ``position`` on, each with the position behind it.

        ``max_documents`` counts documents of a pass.
        """
        rows, turn = int(position["rows"]), int(position.get("pass", 0))
        begins, used = position.get("begins", [0, 0]), int(position.get("used", 0))
        order = epoch_order(len(self._files), self._seed, turn)

        def order_within(begins: list[int], number: int) -> Any:
            # Blocks are told apart by where they begin.
            return epoch_order(number, self._seed ^ (begins[0] << 40) ^ begins[1], turn)

        read = self._read_files(order, *begins)
        for text, place, done in shuffled_blocks(read, begins, used, _BLOCK, order_within):
            if self.max_documents is not None and rows >= self.max_documents:
                return
            rows += 1
            yield text, {"rows": rows, "pass": turn, "begins": place, "used": done}

    def _read_files(self, order: Any, place: int, row: int) -> Iterator[tuple[str, list[int]]]:
        """Documents in the order of files ``order`` from document ``row`` of the file at ``place``
        on, each with the place and row behind it."""
        for at in range(place, len(order)):
            file_system, path, url = self._files[int(order[at])]
            done = row if at == place else 0
            tries = _Tries(f"{self.field}: {url}")
            while True:
                try:
                    with tries.one():
                        for text in islice(self._texts(file_system, path, url), done, None):
                            done += 1
                            tries.again()
                            yield text, [at, done]
                except _TryAgain:
                    continue
                break

    def _texts(self, file_system: Any, path: str, url: str) -> Iterator[str]:
        kind = file_kind(PurePosixPath(path))
        with file_system.open(path, "rb") as raw:
            packed = path.lower().endswith(".gz")
            stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw) if packed else raw)
            if kind == ".parquet":  # whole: what fails on the way is the store's fault
                content = io.BytesIO(raw.read())
                texts = parquet_texts(content, self._text_field, url)
            elif kind in (".txt", ".md", ".py"):
                texts = whole_text(stream.read(), url)
            else:
                texts = (
                    text_of(record, self._text_field, where)
                    for record, where in json_lines(stream, url)
                )
            yield from (text for text in texts if text)


class _TryAgain(Exception):
    """The store did not answer, and is to be asked again."""


class _Tries:
    """Counts what fails in a row, waits between, and gives up."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._failed = 0

    def again(self) -> None:
        """Something was read: what failed before does not count any more."""
        self._failed = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """A try. _TryAgain after a wait where it failed, RunError where it did too often."""
        try:
            yield
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            raise DataError(f"{self._what}: cannot be read: {_said(error)}") from None
        except (gzip.BadGzipFile, EOFError) as error:
            raise DataError(f"{self._what}: damaged or cut gzip file ({error})") from None
        except _unreachable() as error:
            if self._failed >= len(WAITS):
                raise RunError(
                    f"{self._what}: the store cannot be reached ({_said(error)}); tried "
                    f"{self._failed + 1} times. Run the same command again to continue"
                ) from None
            time.sleep(WAITS[self._failed])
            self._failed += 1
            raise _TryAgain from None

    def until_it_works(self, call: Callable[[], Any]) -> Any:
        """What ``call`` returns, tried again where the store does not answer."""
        while True:
            try:
                with self.one():
                    return call()
            except _TryAgain:
                continue


def _unreachable() -> tuple[type[BaseException], ...]:
    """Errors of a connection: Python's own, and those of fsspec's client for the web."""
    client = sys.modules.get("aiohttp")
    return (OSError, client.ClientError) if client is not None else (OSError,)


def _said(error: BaseException) -> str:
    return getattr(error, "strerror", None) or reason(error)


def _listed(url: str) -> tuple[Any, list[str]]:
    """The file system, and what the store has there."""
    from fsspec.core import url_to_fs

    file_system, path = url_to_fs(url)  # some connect here
    if "*" in path:
        return file_system, [str(found) for found in file_system.glob(path)]
    if file_kind(PurePosixPath(path)):
        return file_system, [path] if file_system.exists(path) else []
    return file_system, [str(found) for found in file_system.find(path)]


def _found(url: str, field: str) -> list[tuple[Any, str, str]]:
    """(file system, path, URL) of the files that a URL stands for, in alphabetical order."""
    tries = _Tries(f"{field}: {url}")
    try:
        file_system, found = tries.until_it_works(lambda: _listed(url))
    except ImportError as error:  # "Install s3fs to access S3"
        raise DataError(f"{field}: {url!r} needs a package that is missing: {error}") from None
    except WuNengError:
        raise
    except Exception as error:  # a URL that is none, to each kind of store in its own way
        raise DataError(f"{field}: {url!r}: {reason(error)}") from None
    paths = sorted(path for path in found if file_kind(PurePosixPath(path)))
    if not paths:
        raise DataError(f"{field}: {url!r}: no file there; looked for {readable_kinds()}")
    return [(file_system, p, str(file_system.unstrip_protocol(p))) for p in paths]
