"""What a model keeps while it generates: keys and values that grow, and a state that does not."""

from __future__ import annotations

from pathlib import Path

import torch

from wuneng.train.starting_point import load_start

__all__ = ["cache_sizes"]


@torch.no_grad()
def cache_sizes(model_directory: Path, tokens: int) -> dict[str, int]:
    """Bytes of one sequence's ``cache_bytes`` (keys and values) after ``tokens`` tokens, and its
    ``state_bytes``.

    Raises:
        ModelError, DamagedError: there is no usable model.
    """
    model = load_start(model_directory, check=False).eval()
    ids = torch.zeros((1, tokens), dtype=torch.long)
    cache = model(input_ids=ids, use_cache=True).past_key_values
    return {"cache_bytes": cache.key_value_bytes(), "state_bytes": cache.state_bytes()}
