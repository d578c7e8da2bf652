"""How a causal language model is asked for its logits, whoever's class it is.

Imports torch and transformers alone: a proof of exported modelling code runs this text where the
package cannot be imported.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList


@torch.no_grad()
def answers_to(
    model: Any, rows: Tensor, ids: Tensor, mask: Tensor, start: int
) -> dict[str, Tensor]:
    """Logits ``[positions, vocab]`` at every real position, by the way of asking; float32 at least.

    Args:
        rows: ``[B, T]``, without pads.
        ids, mask: ``[B, T]``, padded on the left.
        start: columns of ``ids`` that are read at once before the token-by-token part.
    """
    real = mask.bool()
    answers = {"full forward": model(rows, use_cache=False).logits.flatten(0, 1)}
    answers["left padding"] = model(ids, attention_mask=mask, use_cache=False).logits[real]
    out = model(ids[:, :start], attention_mask=mask[:, :start], use_cache=True)
    pieces = [out.logits]
    for at in range(start, ids.shape[1]):
        token, seen = ids[:, at : at + 1], mask[:, : at + 1]
        out = model(token, attention_mask=seen, use_cache=True, **_cache(out))
        pieces.append(out.logits)
    answers["cache, token by token"] = torch.cat(pieces, dim=1)[real]
    generated = _generated(model, ids, mask, start)
    answers["generate()"] = generated[real[:, start - 1 : -1]]
    return {name: _wide(logits).contiguous() for name, logits in answers.items()}


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _cache(out: Any) -> dict[str, Any]:
    """An output's cache as the argument of the next call: transformers 5.24 renamed both."""
    name = "cache" if hasattr(out, "cache") else "past_key_values"
    return {name: getattr(out, name)}


class _Forced(LogitsProcessor):
    """Writes the given tokens, so that two models go on from the same text."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, -torch.inf)
        return forced.scatter(1, self.ids[:, input_ids.shape[1], None], 0.0)


def _generated(model: Any, ids: Tensor, mask: Tensor, start: int) -> Tensor:
    """``[B, T - start, vocab]``: what ``generate()`` saw before it wrote ``ids[:, start:]``."""
    own = model.generation_config
    model.generation_config = GenerationConfig()  # no end of text, no sampling of the model's own
    try:
        out = model.generate(
            ids[:, :start],
            attention_mask=mask[:, :start],
            max_new_tokens=ids.shape[1] - start,
            do_sample=False,
            pad_token_id=int(ids[0, 0]),
            logits_processor=LogitsProcessorList([_Forced(ids)]),
            output_logits=True,
            return_dict_in_generate=True,
        )
    finally:
        model.generation_config = own
    return torch.stack(out.logits, dim=1)
