"""A data set that is read over the network while training, with an exact position.

Documents come in the data set's order. There is no shuffle buffer: its rows are lost when a run is
resumed, so a resumed run would not see what the undisturbed one saw.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from typing import Any

from wuneng.data.documents import text_of
from wuneng.errors import DataError, RunError
from wuneng.hub.connection import WAITS, is_away, said

__all__ = ["Position", "StreamedDataset"]

Position = dict[str, Any]
"""Where reading goes on, JSON-able: ``rows`` read before it, and, so that they need not be read
again, the data set's own ``state`` one row earlier with the ``digest`` of that row's text."""


class StreamedDataset:
    """The documents of an iterable data set of ``datasets``."""

    order = "in its own order"

    def __init__(
        self, dataset: Any, name: str, text_field: str, field: str, max_documents: int | None
    ) -> None:
        self.field = field
        self.name = f"data set {name} (streamed)"
        self.max_documents = max_documents
        self._dataset = dataset
        self._text_field = text_field

    def documents(self) -> Iterator[str]:
        """One pass over the documents from the start."""
        return (text for text, _ in self.documents_from({"rows": 0}))

    def documents_from(self, position: Position) -> Iterator[tuple[str, Position]]:
        """The documents from ``position`` on, each with the position right behind it.

        ``max_documents`` counts rows, from the start of the data set. Where the hub does not answer
        it is asked again, later each time, for the row behind the last one.

        Raises DataError for rows that are none, RunError for a hub that stays away.
        """
        failed = 0
        while True:
            try:
                for text, behind in self._documents(position):
                    failed, position = 0, behind
                    yield text, behind
                return
            except _Away as away:
                if failed == len(WAITS):
                    raise RunError(
                        f"{self.field}: {self.name}, after row {position['rows']}: cannot be "
                        f"reached ({away}); tried {failed + 1} times. Run the same command again "
                        "to continue"
                    ) from None
                time.sleep(WAITS[failed])
                failed += 1

    def _documents(self, position: Position) -> Iterator[tuple[str, Position]]:
        """As ``documents_from``, with one try."""
        rows = int(position["rows"])
        for before, text in self._rows_from(position):
            if self.max_documents is not None and rows >= self.max_documents:
                return
            rows += 1
            if text:
                yield text, {"rows": rows, "state": before, "digest": _digest(text)}

    def _rows_from(self, position: Position) -> Iterator[tuple[Any, str]]:
        """(the data set's state before the row or None, the row's text) from ``position`` on."""
        rows = int(position["rows"])
        if position.get("state") is not None:
            # The state is one row early, so that this row shows whether the data set still leads
            # to the same place: some releases of `datasets` restart on a second resume.
            resumed = self._read(self._dataset, rows - 1, position["state"])
            if _leads_to(resumed, position["digest"]):
                yield from resumed
                return
        if rows:
            # States of the shortened data set would not fit the whole one: none are kept.
            shortened = self._read(self._dataset.skip(rows), rows, None)
            yield from ((None, text) for _, text in shortened)
        else:
            yield from self._read(self._dataset, 0, None)

    def _read(self, dataset: Any, rows: int, state: Any) -> Iterator[tuple[Any, str]]:
        """(state before the row, text), from ``state`` on, which ``rows`` rows lead up to."""
        before = state
        dataset.load_state_dict(state)
        try:
            for record in dataset:
                rows += 1
                yield before, text_of(record, self._text_field, f"{self.name}, row {rows}")
                before = dataset.state_dict()
        except Exception as error:
            if is_away(error):
                raise _Away(said(error)) from error
            if not isinstance(error, OSError | ValueError | RuntimeError):
                raise
            raise DataError(f"{self.field}: {self.name}, after row {rows}: {error}") from None


class _Away(Exception):
    """The hub does not answer; it may in a moment."""


def _leads_to(rows: Iterator[tuple[Any, str]], digest: str) -> bool:
    """Whether the next of ``rows`` is the one with this digest."""
    try:
        row = next(rows, None)
    except (DataError, _Away):
        raise
    except Exception:  # a state that another release wrote may break in any way
        return False
    return row is not None and _digest(row[1]) == digest


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8"), digest_size=8).hexdigest()
