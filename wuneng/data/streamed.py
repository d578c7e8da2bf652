"""A data set that is read over the network while training, with an exact position.

Documents come in the data set's order. There is no shuffle buffer: its rows are lost when a run is
resumed, so a resumed run would not see what the undisturbed one saw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from wuneng.data.documents import text_of
from wuneng.errors import DataError

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

        ``max_documents`` counts rows, from the start of the data set.
        """
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
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(f"{self.field}: {self.name}, after row {rows}: {error}") from None


def _leads_to(rows: Iterator[tuple[Any, str]], digest: str) -> bool:
    """Whether the next of ``rows`` is the one with this digest."""
    try:
        row = next(rows, None)
    except DataError:
        raise
    except Exception:  # a state that another release wrote may break in any way
        return False
    return row is not None and _digest(row[1]) == digest


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8"), digest_size=8).hexdigest()
