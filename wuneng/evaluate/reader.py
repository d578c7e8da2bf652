"""The tokenizer that tasks count lengths in, and how much the model behind it reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wuneng.evaluate.loading import load_tokenizer
from wuneng.foreign.regular import read_regular_text

__all__ = ["Reader", "open_reader"]


@dataclass(frozen=True)
class Reader:
    """What a task that makes texts of some length has to know of the model.

    Attributes:
        path: the model's directory.
        tokenizer: its tokenizer.
        context: tokens that it reads at most; None where its configuration does not say.
    """

    path: Path
    tokenizer: Any
    context: int | None

    def count(self, text: str) -> int:
        """Tokens of a text, without marks of its beginning and end."""
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def fitting(self, lengths: Sequence[int]) -> tuple[int, ...]:
        """Those of ``lengths`` that the model reads whole; where it is none, its whole context."""
        if self.context is None:
            return tuple(lengths)
        return tuple(n for n in lengths if n <= self.context) or (self.context,)


def open_reader(path: Path) -> Reader | None:
    """The reader of a model directory; None where it has no tokenizer. ModelError when broken."""
    tokenizer = load_tokenizer(path)
    if tokenizer is None:
        return None
    try:
        config = json.loads(read_regular_text(path / "config.json"))
        context = config.get("max_position_embeddings")
    except (OSError, ValueError, AttributeError):  # told when the model is loaded
        context = None
    return Reader(path, tokenizer, context if isinstance(context, int) else None)
