"""What two models are asked, to see whether they compute the same.

Real text through the model's tokenizer where there is one; seeded random ids elsewhere. Four ways
of asking: whole rows, left-padded rows, left-padded rows continued token by token on a cache, and
the same continuation written by ``generate()``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wuneng.convert.answering import answers_to
from wuneng.errors import DataError
from wuneng.model.pretrained import encoded

__all__ = ["PARAGRAPH", "Answers", "Probe", "ask", "ask_reference", "make_probe"]

PARAGRAPH = (
    "In the spring of 1904 the lighthouse keeper's daughter, Ada, counted 27 ships from the tower "
    'and wrote each of them down. "Father," she said, "the smallest one has turned back." He '
    "looked through the glass: the wind had risen, and a fog bank lay across the bay like wool. "
    "They lit the lamp two hours early. By midnight every ship but one had answered; the last came "
    "in at dawn, its mast broken, its crew cold and laughing. Nobody asked who had seen it first. "
    "café — naïve – 東京 – def count(n): return sum(range(n)) # 0, 1, 3, 6, 10"
)
_TOKENS = 48
_STEPS = 10

#: Logits ``[positions, vocab]`` in float32 (float64 of a model in float64) by the way of asking.
Answers = dict[str, Tensor]


@dataclass(frozen=True)
class Probe:
    """The inputs.

    Attributes:
        rows: ``[2, T]`` int64 ids.
        lengths: real tokens of each row when it is padded on the left; the rest of it is cut off.
        pad: the id that pads.
        kind: ``text`` or ``random ids``.
    """

    rows: Tensor
    lengths: tuple[int, int]
    pad: int
    kind: str

    @property
    def padded(self) -> tuple[Tensor, Tensor]:
        """Left-padded ids and attention mask, ``[2, T]`` each."""
        ids = torch.full_like(self.rows, self.pad)
        mask = torch.zeros_like(self.rows)
        for row, length in enumerate(self.lengths):
            ids[row, -length:] = self.rows[row, :length]
            mask[row, -length:] = 1
        return ids, mask

    @property
    def prefill(self) -> int:
        """Columns of the padded batch that are read at once before the token-by-token part."""
        return self.rows.shape[1] - min(_STEPS, self.rows.shape[1] // 2)


def make_probe(config: Any, tokenizer: Any, seed: int = 0) -> Probe:
    """The probe for a model of this configuration, with its tokenizer or None."""
    length = max(4, min(_TOKENS, int(getattr(config, "max_position_embeddings", None) or _TOKENS)))
    ids = []
    with suppress(DataError):  # a vocabulary that lacks a letter of the paragraph
        ids = [] if tokenizer is None else list(encoded(tokenizer, PARAGRAPH))
    vocab, kind = int(config.vocab_size), "text"
    if len(ids) < length + 8 or max(ids) >= vocab:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, vocab, (3 * length,), generator=generator).tolist()
        kind = "random ids"
    rows = torch.tensor([ids[:length], ids[-length:]])
    pad = getattr(config, "pad_token_id", None)
    lengths = (length, max(2, length * 2 // 3))
    return Probe(rows, lengths, pad if isinstance(pad, int) and 0 <= pad < vocab else 0, kind)


def ask(model: Any, probe: Probe) -> Answers:
    """The logits of a causal language model at every real position."""
    ids, mask = probe.padded
    return answers_to(model, probe.rows, ids, mask, probe.prefill)


def ask_reference(logits: Callable[[Tensor], Tensor], probe: Probe) -> Answers:
    """The same answers from a function that takes one unpadded sequence ``[T]`` at a time."""
    whole = torch.cat([logits(row) for row in probe.rows])
    pairs = zip(probe.rows, probe.lengths, strict=True)
    cut = torch.cat([logits(row[:length]) for row, length in pairs])
    ids, mask = probe.padded
    first = probe.prefill - 1
    spread = cut.new_zeros(*ids.shape, cut.shape[-1])
    spread[mask.bool()] = cut
    written = spread[:, first:-1][mask[:, first:-1].bool()]
    return {
        "full forward": whole,
        "left padding": cut,
        "cache, token by token": cut,
        "generate()": written,
    }
