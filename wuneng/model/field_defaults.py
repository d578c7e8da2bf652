"""What fields of a configuration are where they are left out, as far as others decide it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from wuneng.older_files import BEFORE, gate_before

__all__ = [
    "default_initializer_range",
    "default_intermediate_size",
    "default_rank",
    "with_older_meaning",
]


def default_initializer_range(hidden_size: int) -> float:
    """Standard deviation of initial weights: 0.02 sqrt(768 / D), which is 0.55 / sqrt(D).

    What a layer puts out is then as large at every width as it is at 768, for which GPT-2 and
    those after it chose 0.02.
    """
    return 0.02 * math.sqrt(768 / hidden_size)


def default_intermediate_size(hidden_size: int, ffn: str) -> int:
    """Feed-forward width: 8/3 D for SwiGLU (as Llama), 4 D otherwise; a multiple of 32."""
    width = hidden_size * 8 / 3 if ffn == "swiglu" else hidden_size * 4
    return math.ceil(width / 32) * 32


def default_rank(factor: float, hidden_size: int) -> int:
    """A low-rank size as RWKV-LM has it: max(32, round(c sqrt(D) / 32) * 32)."""
    return max(32, round(factor * math.sqrt(hidden_size) / 32) * 32)


def with_older_meaning(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config.json, those that it is too old to state as they were when it was
    written. A file holds every field that there was: one that lacks ``output_init`` is older."""
    if "transformers_version" not in stored or stored.get("model_type") != "wuneng":
        return dict(stored)
    before = BEFORE if "output_init" not in stored else {}
    return {**before, **stored, **gate_before(stored)}
