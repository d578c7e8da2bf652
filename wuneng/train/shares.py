"""Which rows of a batch a process trains on.

Every process draws the whole batch, the same one, and takes neighbouring rows of it. So the order
of the samples does not depend on how many processes there are, and each of them knows without
asking how many tokens the whole batch scores.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from wuneng.data.batch import IGNORED, Batch
from wuneng.errors import InputError

__all__ = ["check_rows", "share_of"]


def share_of(batch: Batch, number: int, parts: int) -> Batch:
    """Part ``number`` of ``parts``, of as many rows as every other part: where rows are left over,
    the last parts are filled up with rows of which nothing is scored. Bytes are not counted.
    """
    if parts == 1:
        return batch
    rows = batch.input_ids.shape[0]
    each = -(-rows // parts)
    places = torch.arange(number * each, (number + 1) * each)
    real = places < rows
    places = places.clamp(max=rows - 1)

    def taken(tensor: Tensor) -> Tensor:
        return tensor[places.to(tensor.device)]

    labels = taken(batch.labels)
    labels[~real.to(labels.device)] = IGNORED
    return replace(
        batch,
        input_ids=taken(batch.input_ids),
        labels=labels,
        document_ids=None if batch.document_ids is None else taken(batch.document_ids),
        row_bytes=(),
    )


def check_rows(batch_size: int, parts: int) -> None:
    """InputError where some process would have no row."""
    if batch_size < parts:
        raise InputError(
            f"training.batch_size: expected at least one sequence for each of the {parts} parts "
            f"that parallel cuts a batch into, got {batch_size}"
        )
