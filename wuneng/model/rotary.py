"""Rotary positions: what turns queries and keys, of layers with a sliding window and of the others.

Legend: B batch, T tokens, N head size, R the channels of a head that turn.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

__all__ = ["Positions", "make_rotary", "outgrown", "position_embeddings"]

#: Cosines and sines ``[B or 1, T, R]`` by the kind of a layer's mask.
Positions = dict[str, tuple[Tensor, Tensor]]


def make_rotary(config: Any) -> nn.Module:
    """What makes cosines and sines of ``rope_parameters``."""
    partial = (config.rope_parameters or {}).get("partial_rotary_factor", 1.0) != 1.0
    return Phi3RotaryEmbedding(config) if partial else LlamaRotaryEmbedding(config)


def position_embeddings(model: Any, hidden: Tensor, position_ids: Tensor) -> Positions:
    """Of a call with ``position_ids`` ``[B or 1, T]``; ``hidden`` says dtype and device."""
    if model.config.rope_float32:
        hidden = hidden.new_empty(0, dtype=torch.promote_types(hidden.dtype, torch.float32))
    found = model.rotary_emb(hidden, position_ids=position_ids)
    if model.config.sliding_rope_parameters is None:
        return {"full": found, "sliding": found}
    return {"full": found, "sliding": model.sliding_rotary_emb(hidden, position_ids=position_ids)}


def outgrown(config: Any, tokens: int, cached: int) -> bool:
    """Whether a text of ``tokens`` has outgrown what longrope's short factors are for, while its
    first ``cached`` tokens have been read with them."""
    rope = config.rope_parameters or {}
    if not config.longrope_recompute or rope.get("rope_type") != "longrope":
        return False
    return 0 < cached <= int(rope["original_max_position_embeddings"]) < tokens
