"""What a peer that keeps its own cache answers, beside the same weights in a model of ours."""

from __future__ import annotations

from typing import Any

import torch

from tests.precision import relative_error


def assert_as_its_twin(model: Any, twin: Any, allowed: float) -> None:
    """A prompt, tokens after it, twice from the same cache, another prompt, a batch: each as a
    whole forward pass of the twin has it."""
    for batch, tokens in ((1, 40), (1, 90), (3, 33)):
        ids = torch.randint(model.config.vocab_size, (1, tokens)).expand(batch, -1)
        with torch.no_grad():
            expected = twin.model(ids).logits
        out = model(ids[:1, :-3], use_cache=True)
        assert relative_error(out.logits, expected[:1, :-3]) < allowed
        cache = out.past_key_values
        if batch > 1:
            cache.batch_repeat_interleave(batch)
        for _ in range(2):
            after = cache
            for position in range(tokens - 3, tokens):
                token = ids[:, position : position + 1]
                out = model(token, use_cache=True, past_key_values=after)
                after = out.past_key_values
                assert relative_error(out.logits, expected[:, position : position + 1]) < allowed
