"""Which rows of a batch a process trains on, and which piece of them.

Every process draws the whole batch, the same one, and takes neighbouring rows of it, or with
``parallel.context`` consecutive tokens of such rows. So the order
of the samples does not depend on how many processes there are, and each of them knows without
asking how many tokens the whole batch scores.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from wuneng.data.batch import IGNORED, Batch
from wuneng.errors import InputError
from wuneng.ops.context import piece_lengths
from wuneng.recipe import Training

__all__ = ["check_length", "check_moments", "check_rows", "piece_of_rows", "share_of"]


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


def piece_of_rows(batch: Batch, number: int, parts: int) -> Batch:
    """Part ``number`` of ``parts`` of every row's tokens: consecutive ones. Labels are those of the
    tokens, which are shifted already. Bytes are not counted."""
    if parts == 1:
        return batch
    ends = [0, *accumulate(piece_lengths(batch.input_ids.shape[1], parts))]
    own = slice(ends[number], ends[number + 1])
    documents = batch.document_ids
    return replace(
        batch,
        input_ids=batch.input_ids[:, own],
        labels=batch.labels[:, own],
        document_ids=None if documents is None else documents[:, own],
        row_bytes=(),
    )


def check_length(length: int, parts: int) -> None:
    """InputError where some process would have no token of a sequence."""
    if length < parts:
        raise InputError(
            f"training.sequence_length: expected a token or more for each of the {parts} processes "
            f"that parallel.context cuts a sequence for, got {length}"
        )


def check_moments(arm: str, training: Training, shard: int) -> None:
    """InputError where moments in eight bits would have to be cut."""
    if shard > 1 and training.optimizer == "adamw-8bit":
        raise InputError(
            f"arms.{arm}: training.optimizer adamw-8bit is not for weights that are cut among "
            f"processes (parallel.shard {shard}): blocks of moments would lie across the cuts. Use "
            "adamw-bf16, or parallel.shard: 1"
        )


def check_rows(batch_size: int, parts: int) -> None:
    """InputError where some process would have no row."""
    if batch_size < parts:
        raise InputError(
            f"training.batch_size: expected at least one sequence for each of the {parts} parts "
            f"that parallel cuts a batch into, got {batch_size}"
        )
