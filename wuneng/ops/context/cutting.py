"""A batch cut in pieces: which tokens each rank gets."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor

from wuneng.ops.context.active import process_group

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


def piece_lengths(tokens: int, ranks: int) -> tuple[int, ...]:
    """How many of a sequence's tokens each rank gets: as many, or one more on the first ranks.

    Raises:
        ValueError: fewer tokens than ranks.
    """
    if tokens < ranks:
        raise ValueError(
            f"a sequence of {tokens} tokens cannot be cut for {ranks} ranks: expected a token or "
            "more for each"
        )
    each, more = divmod(tokens, ranks)
    return tuple(each + (rank < more) for rank in range(ranks))


def piece_of(
    batch: Mapping[str, Any], group: ProcessGroup | DeviceMesh | None = None
) -> dict[str, Any]:
    """This rank's piece of a batch that every rank of the group has whole.

    Args:
        batch: a model call's arguments by name. Tensors are ``[B or 1, T]`` or ``[B, T, D]`` and
            cut along T: ``input_ids`` or ``inputs_embeds``, ``labels`` (not shifted: the model
            sees to the label of a piece's last token) or ``shift_labels``, ``document_ids``,
            ``position_ids``, ``attention_mask``. Anything else is handed on.
        group: as of :func:`wuneng.ops.context.context_parallel`.

    Raises:
        ValueError: a tensor of another length, boundaries of documents (give ``document_ids``),
            fewer tokens than ranks; otherwise as ``context_parallel``.
    """
    found = process_group(group)
    first = next((n for n in ("input_ids", "inputs_embeds") if batch.get(n) is not None), None)
    if first is None:
        raise ValueError("piece_of: expected a batch with input_ids or inputs_embeds")
    tokens = batch[first].shape[1]
    lengths = piece_lengths(tokens, dist.get_world_size(found))
    rank = dist.get_rank(found)
    end = list(accumulate(lengths))[rank]
    own = slice(end - lengths[rank], end)
    cut: dict[str, Any] = {}
    for name, value in batch.items():
        if not isinstance(value, Tensor) or not value.dim():
            cut[name] = value
        elif value.dim() < 2 or value.shape[1] != tokens:
            raise ValueError(
                f"{name}: expected shape [batch, {tokens}] as {first} has, got {list(value.shape)}"
            )
        else:
            cut[name] = value[:, own]
    return cut
