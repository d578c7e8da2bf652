"""Attention masks: causal, sliding window, padded, and packed documents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from wuneng.model.call_arguments import with_cache


def attention_masks(
    config: Any,
    embeddings: Tensor,
    attention_mask: Tensor | None,
    cache: Any,
    position_ids: Tensor,
    document_ids: Tensor | None,
) -> dict[str, Any]:
    """The masks a model's layers need, keyed ``full`` and ``sliding``.

    Each is whatever the configured attention implementation takes (None where it is plain causal).
    ``document_ids`` ``[B, T]`` keeps packed documents apart.
    """
    sliding = [False]
    if config.sliding_window is not None:
        attending = (i for i in range(config.num_hidden_layers) if config.has_attention(i))
        sliding = [config.is_sliding(layer) for layer in attending]
    arguments: dict[str, Any] = {
        "config": config,
        "inputs_embeds": embeddings,
        "attention_mask": attention_mask,
        "position_ids": position_ids,
        **with_cache(cache),
    }
    masks: dict[str, Any] = {}
    if document_ids is not None and config._attn_implementation in ("sdpa", "eager"):
        if False in sliding:
            masks["full"] = _document_mask(config, embeddings, document_ids, None)
        if True in sliding:
            window = config.sliding_window
            masks["sliding"] = _document_mask(config, embeddings, document_ids, window)
        return masks
    if document_ids is not None:
        arguments["and_mask_function"] = _same_document(document_ids)
    if False in sliding:
        masks["full"] = create_causal_mask(**arguments)
    if True in sliding:
        masks["sliding"] = create_sliding_window_causal_mask(**arguments)
    return masks


def _same_document(document_ids: Tensor) -> Any:
    def same(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return document_ids[batch, query] == document_ids[batch, key]

    return same


def _document_mask(
    config: Any, embeddings: Tensor, document_ids: Tensor, window: int | None
) -> Tensor:
    """``[B, 1, T, T]`` mask: causal, within one document, within the window.

    Built directly: transformers' composable masks go through vmap, which costs more than the
    attention itself at these lengths on a CPU.
    """
    length = document_ids.shape[1]
    index = torch.arange(length, device=document_ids.device)
    distance = index[:, None] - index[None, :]
    allowed = distance >= 0
    if window is not None:
        allowed &= distance < window
    allowed = allowed & (document_ids[:, :, None] == document_ids[:, None, :])
    if config._attn_implementation == "sdpa":
        return allowed[:, None]
    lowest = torch.finfo(embeddings.dtype).min
    zeros = torch.zeros((), dtype=embeddings.dtype, device=embeddings.device)
    return torch.where(allowed, zeros, lowest)[:, None]
