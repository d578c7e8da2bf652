"""Which tokens of a batch belong together: packed documents, pads, positions.

Read off what a call gives: document ids, or transformers' other ways of saying the same (restarting
position ids, ``cu_seq_lens_q``), and a padding mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wuneng.layers.layout import SequenceLayout


def packed_documents(
    rows: Tensor,
    attention_mask: Any,
    position_ids: Tensor | None,
    document_ids: Tensor | None,
    boundaries: Tensor | None,
) -> Tensor | None:
    """Document ids ``[B, T]``, counted from 0 in each row; None if every row is one sequence.

    A run of pads is a document of its own, so that packed rows need no padding mask.

    Args:
        rows: ``[B, T, ...]``, for its shape.
        attention_mask: as the model's call, zero at pads.
        position_ids: ``[B or 1, T]``; where they do not go on by one, a document starts.
        document_ids: ``[B or 1, T]``; given, they decide.
        boundaries: ``cu_seq_lens_q`` ``[documents + 1]`` of the flattened batch.

    Raises:
        ValueError: ids of another shape; a document with a pad inside it; document ids or
            boundaries beside a mask of pairs. Position ids beside such a mask are positions only.
    """
    explicit = document_ids is not None or boundaries is not None
    if attention_mask is not None and not _is_padding(attention_mask):
        if explicit:
            raise ValueError(f"packed documents: {_mask_of_pairs(attention_mask)}")
        return None  # the mask itself says what sees what
    mask = None if attention_mask is None else attention_mask[:, -rows.shape[1] :].bool()
    if mask is not None and bool(mask.all()):
        mask = None
    if document_ids is not None:
        changes = _expanded(document_ids, rows, "document_ids")
        changes = changes[:, 1:] != changes[:, :-1]
    elif boundaries is not None:
        changes = _starts(boundaries, rows)[:, 1:]
    elif position_ids is None or position_ids.shape[-1] < 2:
        return None
    else:
        changes = _restarts(_expanded(position_ids, rows, "position_ids"), mask)
        if not bool(changes.any()):
            return None
    if mask is None:
        return _counted(changes)
    return _apart_from_pads(changes, mask, explicit)


def _restarts(positions: Tensor, mask: Tensor | None) -> Tensor:
    """``[B, T - 1]``: where a token's position does not follow that of the real token before it."""
    if mask is None:
        return positions[:, 1:] != positions[:, :-1] + 1
    index = torch.arange(positions.shape[1], device=positions.device)
    last_real = torch.where(mask, index, -1).cummax(-1).values[:, :-1]
    before = positions.gather(1, last_real.clamp(min=0))
    return (positions[:, 1:] != before + 1) & mask[:, 1:] & (last_real >= 0)


def _apart_from_pads(changes: Tensor, mask: Tensor, explicit: bool) -> Tensor:
    """Documents where pads are documents too; a pad must not lie inside one."""
    documents = _counted(changes)
    edges = mask[:, 1:] != mask[:, :-1]
    runs = _counted(edges | changes)
    # A document is in one piece where its real tokens lie in one run.
    index = torch.arange(mask.shape[1], device=mask.device)
    last_real = torch.where(mask, index, -1).cummax(-1).values[:, :-1].clamp(min=0)
    known = mask[:, 1:] & mask.gather(1, last_real)
    same = documents[:, 1:] == documents.gather(1, last_real)
    if bool((known & same & (runs[:, 1:] != runs.gather(1, last_real))).any()):
        what = "document_ids" if explicit else "restarting position_ids"
        raise ValueError(f"{what}: a packed document has a pad (attention_mask 0) inside it")
    return runs


def _counted(changes: Tensor) -> Tensor:
    return nn.functional.pad(changes.long(), (1, 0)).cumsum(-1)


def _expanded(ids: Tensor, rows: Tensor, name: str) -> Tensor:
    batch, length = rows.shape[:2]
    if ids.dim() != 2 or ids.shape[0] not in (1, batch) or ids.shape[1] != length:
        raise ValueError(
            f"{name}: expected shape [{batch}, {length}] as the tokens have, got {list(ids.shape)}"
        )
    return ids.expand(batch, length)


def _starts(boundaries: Tensor, rows: Tensor) -> Tensor:
    """``[B, T]``: where ``cu_seq_lens_q`` starts a document."""
    batch, length = rows.shape[:2]
    if boundaries.dim() != 1 or int(boundaries[-1]) != batch * length:
        raise ValueError(
            f"cu_seq_lens_q: expected boundaries from 0 to {batch * length}, the number of tokens, "
            f"got {boundaries.tolist()[:8]}"
        )
    starts = torch.zeros(batch * length, dtype=torch.bool, device=rows.device)
    starts[boundaries[:-1].long()] = True
    return starts.view(batch, length)


def positions(
    hidden: Tensor, position_ids: Tensor | None, seen: int, document_ids: Tensor | None
) -> Tensor:
    """Position of each token: given, or counted from its document's start or after ``seen``."""
    if position_ids is not None:
        return position_ids
    index = torch.arange(hidden.shape[1], device=hidden.device)
    if document_ids is None:
        return (index + seen).unsqueeze(0)
    starts = nn.functional.pad(document_ids[:, 1:] != document_ids[:, :-1], (1, 0), value=True)
    return index - torch.where(starts, index, 0).cummax(-1).values


def sequence_layout(
    config: Any, hidden: Tensor, attention_mask: Any, document_ids: Tensor | None
) -> SequenceLayout:
    """Which tokens recurrent state runs over.

    Raises:
        ValueError: a mask that is not ``[B, T]`` for a model with state, token shift or short
            convolution, which cannot follow it.
    """
    batch, length = hidden.shape[:2]
    if document_ids is not None:
        return SequenceLayout.from_documents(document_ids)
    if attention_mask is None:
        return SequenceLayout.dense(batch, length)
    if _is_padding(attention_mask):
        return SequenceLayout.from_padding(attention_mask[:, -length:])
    mixes = config.attention_token_shift or config.attention_short_conv
    if config.num_state_heads or mixes or config.ffn == "rwkv7":
        raise ValueError(
            f"{_mask_of_pairs(attention_mask)}: a recurrent state cannot follow a mask of pairs; "
            "use document_ids= to keep packed documents apart"
        )
    return SequenceLayout.dense(batch, length)


def _is_padding(attention_mask: Any) -> bool:
    return isinstance(attention_mask, Tensor) and attention_mask.dim() == 2


def _mask_of_pairs(attention_mask: Any) -> str:
    shape = list(getattr(attention_mask, "shape", [])) or type(attention_mask).__name__
    return f"attention_mask: expected [batch, tokens] (zero at pads), got {shape}"
