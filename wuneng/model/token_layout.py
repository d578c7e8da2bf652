"""Which tokens of a batch belong together: packed documents, pads, positions.

Read off what a call gives: document ids, or transformers' other ways of saying the same (restarting
position ids, ``cu_seq_lens_q``), and a padding mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wuneng.layers.layout import SequenceLayout
from wuneng.model.call_arguments import BOUNDARIES
from wuneng.model.call_shapes import check_tokens, is_padding, mask_of_pairs


def packed_documents(
    rows: Tensor,
    attention_mask: Any,
    position_ids: Tensor | None,
    documents: Mapping[str, Tensor | None],
) -> Tensor | None:
    """Document ids ``[B, T]``, counted from 0 in each row; None if every row is one sequence.

    A run of pads is a document of its own, so that packed rows need no padding mask.

    Args:
        rows: ``[B, T, ...]``, for its shape.
        attention_mask: as the model's call, zero at pads.
        position_ids: ``[B or 1, T]``; where they do not go on by one, a document starts.
        documents: by the name of the call's argument; given, they decide. ``document_ids`` and
            ``seq_idx`` are ``[B or 1, T]`` integers, ``cu_seq_lens_q`` and ``cu_seq_lens_k``
            ``[documents + 1]`` boundaries in the flattened batch.

    Raises:
        ValueError: ids of another shape, boundaries of another batch or from row to row, or two
            arguments that do not agree; a document with a pad inside it; documents beside a mask of
            pairs. Position ids beside such a mask are positions only.
    """
    said = {name: value for name, value in documents.items() if value is not None}
    explicit = ", ".join(said)
    if attention_mask is not None and not is_padding(attention_mask):
        if explicit:
            raise ValueError(f"packed documents: {mask_of_pairs(attention_mask)}")
        return None  # the mask itself says what sees what
    mask = None if attention_mask is None else attention_mask[:, -rows.shape[1] :].bool()
    if mask is not None and bool(mask.all()):
        mask = None
    if said:
        changes = _agreed(said, rows)
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


def _apart_from_pads(changes: Tensor, mask: Tensor, explicit: str) -> Tensor:
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
        what = explicit or "restarting position_ids"
        raise ValueError(f"{what}: a packed document has a pad (attention_mask 0) inside it")
    return runs


def _counted(changes: Tensor) -> Tensor:
    return nn.functional.pad(changes.long(), (1, 0)).cumsum(-1)


def _expanded(ids: Tensor, rows: Tensor, name: str) -> Tensor:
    check_tokens(ids, rows, name)
    return ids.expand(rows.shape[:2])


def _agreed(said: Mapping[str, Tensor], rows: Tensor) -> Tensor:
    """``[B, T - 1]``: where documents start, as every argument says that says so."""
    found = {name: _said(name, value, rows) for name, value in said.items()}
    (first, changes), *others = found.items()
    for name, other in others:
        if not torch.equal(other, changes):
            raise ValueError(f"{first} and {name} start documents in different places")
    return changes


def _said(name: str, value: Tensor, rows: Tensor) -> Tensor:
    if name in BOUNDARIES:
        return _starts(value, rows, name)[:, 1:]
    ids = _expanded(value, rows, name)
    return ids[:, 1:] != ids[:, :-1]


def _starts(boundaries: Tensor, rows: Tensor, name: str) -> Tensor:
    """``[B, T]``: where ``cu_seq_lens`` starts a document; each row starts one."""
    batch, length = rows.shape[:2]
    tokens, ends = batch * length, boundaries.tolist()
    integers = boundaries.dim() == 1 and not boundaries.is_floating_point()
    if not integers or ends[:1] + ends[-1:] != [0, tokens] or ends != sorted(ends):
        raise ValueError(
            f"{name}: expected boundaries from 0 to {tokens}, the number of tokens, ascending, "
            f"got {str(ends)[:80]}"
        )
    across = set(range(0, tokens, length or 1)).difference(ends)
    if across:
        raise ValueError(
            f"{name}: a document goes on from row {min(across) // length - 1} into the next; "
            f"expected a boundary at every {length} tokens, or one row"
        )
    starts = torch.zeros(tokens + 1, dtype=torch.bool, device=rows.device)
    starts[boundaries.long()] = True
    return starts[:-1].view(batch, length)


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
    if is_padding(attention_mask):
        return SequenceLayout.from_padding(attention_mask[:, -length:])
    mixes = config.attention_token_shift or config.attention_short_conv
    if config.num_state_heads or mixes or config.ffn == "rwkv7":
        raise ValueError(
            f"{mask_of_pairs(attention_mask)}: a recurrent state cannot follow a mask of pairs; "
            "use document_ids= to keep packed documents apart"
        )
    return SequenceLayout.dense(batch, length)
