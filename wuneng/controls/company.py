"""Batches in which no row is alone: another row's state needs another row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch

from wuneng.data.batch import Batch, ValidationData
from wuneng.errors import DataError

__all__ = ["InCompany", "in_company"]


@dataclass(frozen=True)
class InCompany:
    """``inner``'s rows in their order; DataError where a task has one row alone."""

    inner: ValidationData

    def batches(self) -> Iterator[Batch]:
        """One pass over the set."""
        for batch in in_company(self.inner.batches()):
            if len(batch.input_ids) == 1:
                raise DataError(
                    f"validation of {batch.task!r}: another row's state (permute, donor) needs two "
                    "rows, and it has one; hold out more"
                )
            yield batch


def in_company(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The same rows; one that would be alone in its batch joins the batch before, where that is of
    the same task and length."""
    held: Batch | None = None
    for batch in batches:
        if held is not None and len(batch.input_ids) == 1 and _alike(held, batch):
            held = _joined(held, batch)
            continue
        if held is not None:
            yield held
        held = batch
    if held is not None:
        yield held


def _alike(one: Batch, other: Batch) -> bool:
    documents = (one.document_ids is None) == (other.document_ids is None)
    of_one, of_other = (one.task, one.source, one.length), (other.task, other.source, other.length)
    return documents and of_one == of_other


def _joined(one: Batch, other: Batch) -> Batch:
    documents = None
    if one.document_ids is not None and other.document_ids is not None:
        documents = torch.cat([one.document_ids, other.document_ids])
    return replace(
        one,
        input_ids=torch.cat([one.input_ids, other.input_ids]),
        labels=torch.cat([one.labels, other.labels]),
        document_ids=documents,
        row_bytes=(*one.row_bytes, *other.row_bytes),
    )
