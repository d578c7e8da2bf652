"""Attention masks: causal, sliding window, padded, and packed documents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from wuneng.layers.context_layout import PieceLayout
from wuneng.model.call_arguments import with_cache


def attention_masks(
    config: Any,
    embeddings: Tensor,
    attention_mask: Tensor | None,
    cache: Any,
    document_ids: Tensor | None,
) -> dict[str, Any]:
    """The masks a model's layers need, keyed ``full`` and ``sliding``.

    Each is whatever the configured attention implementation takes (None where it is plain causal).
    ``document_ids`` ``[B, T]`` keeps packed documents apart. transformers is not told of positions:
    it would look for restarting ones, which are in ``document_ids``, and wait for the device.
    """
    sliding = _kinds(config)
    arguments: dict[str, Any] = {
        "config": config,
        "inputs_embeds": embeddings,
        "attention_mask": attention_mask,
        **with_cache(cache),
    }
    masks: dict[str, Any] = {}
    if document_ids is not None and config._attn_implementation in ("sdpa", "eager"):
        if False in sliding:
            masks["full"] = _tokens_mask(config, embeddings, document_ids, None)
        if True in sliding:
            window: int | None = config.sliding_window
            masks["sliding"] = _tokens_mask(config, embeddings, document_ids, window)
        return masks
    if document_ids is not None:
        arguments["and_mask_function"] = _same_document(document_ids)
    whole = attention_mask is None and document_ids is None and cache is None
    for is_sliding in set(sliding):
        name = "sliding" if is_sliding else "full"
        window = config.sliding_window if is_sliding else None
        if whole and _is_causal_alone(config, embeddings.shape[1], window):
            masks[name] = None
        elif is_sliding:
            masks[name] = create_sliding_window_causal_mask(**arguments)
        else:
            masks[name] = create_causal_mask(**arguments)
    return masks


def _is_causal_alone(config: Any, tokens: int, window: int | None) -> bool:
    """Whether torch's attention needs no mask of a whole sequence without pads.

    transformers finds the same, but not while a graph is traced or captured: attention would then
    read a mask of all pairs.
    """
    return config._attn_implementation == "sdpa" and (window is None or tokens <= window)


def _same_document(document_ids: Tensor) -> Any:
    def same(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return document_ids[batch, query] == document_ids[batch, key]

    return same


def piece_masks(
    config: Any, embeddings: Tensor, document_ids: Tensor | None, layout: PieceLayout
) -> dict[str, Any]:
    """As :func:`attention_masks`, of a rank's piece: its queries by the keys that it sees.

    Explicit even where it is plain causal: an implementation that is told of causality alone would
    line the first query up with the first key.

    Args:
        document_ids: ``[B, all tokens]`` of the whole sequence, or None.
    """
    masks = {}
    for sliding in set(_kinds(config)):
        window = config.sliding_window if sliding else None
        masks["sliding" if sliding else "full"] = _tokens_mask(
            *(config, embeddings, document_ids, window),
            queries=layout.piece.tokens,
            keys=layout.keys(window),
        )
    return masks


def _kinds(config: Any) -> list[bool]:
    """Of each layer with attention whether it has a sliding window."""
    if config.sliding_window is None:
        return [False]
    attending = (i for i in range(config.num_hidden_layers) if config.has_attention(i))
    return [config.is_sliding(layer) for layer in attending]


def _tokens_mask(
    config: Any,
    embeddings: Tensor,
    document_ids: Tensor | None,
    window: int | None,
    *,
    queries: slice | None = None,
    keys: slice | None = None,
) -> Tensor:
    """``[B or 1, 1, queries, keys]`` mask: causal, within one document, within the window. Queries
    and keys are tokens of the whole sequence, all of them where nobody says.

    Built directly: transformers' composable masks go through vmap, which costs more than the
    attention itself at these lengths on a CPU.
    """
    if queries is None or keys is None:
        assert document_ids is not None
        queries = keys = slice(0, document_ids.shape[1])
    index = torch.arange(max(queries.stop, keys.stop), device=embeddings.device)
    distance = index[queries, None] - index[None, keys]
    allowed = distance >= 0
    if window is not None:
        allowed &= distance < window
    allowed = allowed[None]
    if document_ids is not None:
        allowed = allowed & (document_ids[:, queries, None] == document_ids[:, None, keys])
    if config._attn_implementation == "sdpa":
        return allowed[:, None]
    lowest = torch.finfo(embeddings.dtype).min
    zeros = torch.zeros((), dtype=embeddings.dtype, device=embeddings.device)
    return torch.where(allowed, zeros, lowest)[:, None]
