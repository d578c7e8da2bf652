"""A model's call under context parallelism: what the ranks tell each other before its layers run.

Every rank sees to it that all were called alike, learns how long the pieces are and which documents
the whole sequence has, and lays out its own piece. What cannot be cut is refused on every rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from wuneng.kinds import load_kind
from wuneng.layers.context_layout import PieceLayout
from wuneng.model.call_arguments import BOUNDARIES
from wuneng.model.call_layout import CallLayout
from wuneng.model.call_shapes import check_tokens, is_padding
from wuneng.model.masks import piece_masks
from wuneng.model.rotary import position_embeddings
from wuneng.model.token_layout import packed_documents, positions
from wuneng.ops.context import Context, gather_integers, gather_tokens, make_piece

#: Attention implementations that take a mask of queries by keys, which need not be square.
IMPLEMENTATIONS = ("sdpa", "eager")


def refuse_under_context(config: Any, cache: Any, said: Mapping[str, Any]) -> None:
    """Refuse what a piece of a sequence cannot have.

    Raises:
        ValueError: a cache; boundaries of documents in a flattened batch; otherwise as
            :func:`check_context`.
    """
    if cache is not None:
        raise ValueError(
            "context_parallel: a cache cannot be cut, and text is generated in one process; call "
            "the model without a cache, or outside the context"
        )
    for name in BOUNDARIES:
        if said.get(name) is not None:
            raise ValueError(f"context_parallel: {name} cannot be cut; give document_ids")
    check_context(config)


def check_context(config: Any) -> None:
    """Refuse a configuration that is not for pieces.

    Raises:
        ValueError: an attention implementation (where it is chosen already), or a kind of heads.
    """
    implementation = config._attn_implementation
    unfit = implementation is not None and implementation not in IMPLEMENTATIONS
    if config.num_attention_heads and unfit:
        raise ValueError(
            f"context_parallel: expected attn_implementation {' or '.join(IMPLEMENTATIONS)}, got "
            f"{implementation!r}"
        )
    if config.num_state_heads:
        _refuse_kind("state", config.state_kind, "state_kind")
        _refuse_kind("middle", config.cross_head, "cross_head")


def _refuse_kind(room: Any, name: str, field: str) -> None:
    kind = load_kind(room, name)
    if not kind.__dict__.get("context_parallel", False):
        raise ValueError(
            f"context_parallel: {field} {name!r} ({kind.__module__}.{kind.__qualname__}) does not "
            "say that it may see a piece of a sequence (context_parallel = True in its own body)"
        )


def piece_call(
    context: Context,
    model: Any,
    hidden: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    documents: Mapping[str, Tensor | None],
    cache: Any,
) -> CallLayout:
    """As :func:`wuneng.model.call_layout.whole_call`, of this rank's piece; a collective call.

    Raises:
        ValueError: ranks that were called differently, on all of them; pads, a cache, boundaries
            of documents in a flattened batch; an attention implementation, or a kind of heads,
            that is not for pieces; otherwise as ``whole_call``.
    """
    config = model.config
    refuse_under_context(config, cache, documents)
    documents = {name: ids for name, ids in documents.items() if name not in BOUNDARIES}
    given = {"attention_mask": attention_mask, "position_ids": position_ids, **documents}
    if attention_mask is not None and not is_padding(attention_mask):
        raise ValueError(
            "context_parallel: a mask of pairs cannot be cut; use document_ids= to keep packed "
            "documents apart"
        )
    for name, ids in documents.items():
        if ids is not None:
            check_tokens(ids, hidden, name)
    alike = {"rows": hidden.shape[0], **{name: x is not None for name, x in given.items()}}
    lengths = agreed(context, hidden.device, alike, hidden.shape[1])
    if not min(lengths):
        raise ValueError(
            f"context_parallel: every rank needs a token or more, got pieces of {list(lengths)}"
        )
    whole = {name: _whole(x, hidden, lengths, context) for name, x in given.items()}
    batch, tokens = hidden.shape[0], sum(lengths)
    mask = whole.pop("attention_mask")
    if mask is not None and not bool(mask.bool().all()):
        raise ValueError(
            "context_parallel: attention_mask has pads; pack the rows (document_ids=), whose last "
            "document may be filling that is not scored"
        )
    rows = hidden.new_zeros(()).expand(batch, tokens, 1)
    at = whole.pop("position_ids")
    document_ids = packed_documents(rows, None, at, whole)
    at = positions(rows, at, 0, document_ids)
    piece = make_piece(context, lengths, document_ids, batch, hidden.device)
    layout = PieceLayout.of(piece, document_ids, batch)
    if not config.num_attention_heads:
        return CallLayout(layout, {}, {}, None)
    masks = piece_masks(config, hidden, document_ids, layout)
    # The longest position too: some ways of scaling look at it.
    longest = at.max().expand(at.shape[0], 1)
    turns = position_embeddings(model, hidden, torch.cat([at[:, piece.tokens], longest], dim=1))
    turns = {kind: (cos[:, :-1], sin[:, :-1]) for kind, (cos, sin) in turns.items()}
    return CallLayout(layout, masks, turns, None)


def agreed(
    context: Context, device: torch.device, alike: Mapping[str, int | bool], own: int = 0
) -> tuple[int, ...]:
    """Every rank's ``own``; a collective call.

    Args:
        alike: what must be the same everywhere: numbers, and whether an argument is given.

    Raises:
        ValueError: on every rank, if something is not.
    """
    told = torch.tensor([own, *map(int, alike.values())], dtype=torch.int64, device=device)
    owns, *columns = zip(*gather_integers(told, context).tolist(), strict=True)
    for (what, mine), values in zip(alike.items(), columns, strict=True):
        if len(set(values)) > 1:
            found, where = [f"{n} on rank {rank}" for rank, n in enumerate(values)], "every rank"
            if isinstance(mine, bool):
                found = [f"rank {rank} has {what}" for rank, given in enumerate(values) if given]
                where = "every rank, or on none"
            raise ValueError(
                f"context_parallel: expected the same {what} on {where}, got {', '.join(found)} "
                f"of {context.ranks} ranks"
            )
    return owns


def _whole(
    x: Tensor | None, hidden: Tensor, lengths: tuple[int, ...], context: Context
) -> Tensor | None:
    """``[B, tokens]`` of all ranks, from integers ``[B or 1, T]`` of each."""
    if x is None:
        return None
    return gather_tokens(x.expand(hidden.shape[:2]).T.contiguous(), lengths, context).T
