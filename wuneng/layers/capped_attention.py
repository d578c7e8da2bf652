"""Softmax attention whose logits are capped (Gemma 2): what torch's own attention does not compute.

Legend: B batch, H query heads, G key/value heads, T queries, K keys, N head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["capped_attention"]


def capped_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    softcap: float,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, Tensor]:
    """One of transformers' attention functions, with logits c tanh(q k s / c).

    Args:
        query: ``[B, H, T, N]``.
        key, value: ``[B, G, K, N]``.
        attention_mask: added to the capped logits, ``[B or 1, 1, T, K]``.
        softcap: c.
        scaling: s.

    Returns:
        ``[B, T, H, N]`` and the weights ``[B, H, T, K]``. Logits, as transformers has them, are in
        the precision of ``query``; the softmax is in float32 at least.
    """
    groups = module.num_key_value_groups
    key, value = (u.repeat_interleave(groups, dim=1) if groups > 1 else u for u in (key, value))
    logits = torch.matmul(query, key.transpose(2, 3)) * scaling
    logits = torch.tanh(logits / softcap) * softcap
    if attention_mask is not None:
        logits = logits + attention_mask
    wide = torch.promote_types(query.dtype, torch.float32)
    weights = torch.softmax(logits, dim=-1, dtype=wide).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights
