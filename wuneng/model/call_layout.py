"""What a model's layers are handed of a call: layout, masks, positions, cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from wuneng.layers.layout import SequenceLayout
from wuneng.model.cache import WuNengCache
from wuneng.model.masks import attention_masks
from wuneng.model.rotary import Positions, position_embeddings
from wuneng.model.token_layout import packed_documents, positions, sequence_layout


class CallLayout(NamedTuple):
    """A call laid out.

    Attributes:
        layout: which tokens form which sequence.
        masks: of attention, as :func:`wuneng.model.masks.attention_masks`.
        position_embeddings: as :func:`wuneng.model.rotary.position_embeddings`; empty without
            attention.
        cache: given, made, or None.
    """

    layout: SequenceLayout
    masks: dict[str, Any]
    position_embeddings: Positions
    cache: WuNengCache | None


def whole_call(
    model: Any,
    hidden: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    documents: Mapping[str, Tensor | None],
    cache: WuNengCache | None,
    use_cache: bool | None,
) -> CallLayout:
    """Of whole sequences in one process.

    Args:
        model: a ``WuNengModel``.
        hidden: ``[B, T, D]``, its embedded tokens.
        documents: what says where documents start, by the name of the call's argument.

    Raises:
        ValueError: packed documents together with a cache; otherwise as
            :func:`wuneng.model.token_layout.packed_documents` and ``sequence_layout``.
    """
    config, seen = model.config, 0 if cache is None else cache.get_seq_length()
    document_ids = packed_documents(hidden, attention_mask, position_ids, documents)
    if document_ids is not None:
        attention_mask = None  # its pads are documents of their own
        if cache is not None:
            raise ValueError(
                "Packed documents (document_ids, restarting position_ids) cannot be combined "
                "with a cache."
            )
    elif use_cache and cache is None:
        cache = WuNengCache(config)
    position_ids = positions(hidden, position_ids, seen, document_ids)
    layout = sequence_layout(config, hidden, attention_mask, document_ids)
    if not config.num_attention_heads:
        return CallLayout(layout, {}, {}, cache)
    masks = attention_masks(config, hidden, attention_mask, cache, document_ids)
    embeddings = position_embeddings(model, hidden, position_ids)
    return CallLayout(layout, masks, embeddings, cache)
