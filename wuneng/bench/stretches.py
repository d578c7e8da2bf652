"""Which tokens of a long sequence a recurrence is compared at with its token loop.

Up to ``WHOLE`` tokens, all. The loop over more would take most of a benchmark's time, and is not
needed: a recurrence that forgets does not know, ``REACH`` tokens on, what stood there. So the first
tokens, some between and the last are compared, with loops that begin ``REACH`` tokens before what
is compared and end ``REACH`` after; that this much is forgotten is looked up in the inputs. Of a
recurrence that does not forget (Mamba-2), the first ``WHOLE`` tokens are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wuneng.bench.draws import normal

__all__ = [
    "REACH",
    "STRETCH",
    "WHOLE",
    "Stretch",
    "compared_tokens",
    "cut",
    "direction",
    "stretches_of",
    "tokens_of",
]

WHOLE = 2048
#: Tokens that a loop goes over: what comes before, what is compared, what comes after.
STRETCH = 1024
REACH = 256
#: The log of what a state is scaled by until no digit is left of what it was.
_FORGOTTEN = -40.0


@dataclass(frozen=True)
class Stretch:
    """Tokens ``start`` to ``end``, and which of them (counted from ``start``) are compared."""

    name: str
    start: int
    end: int
    outputs: slice
    gradients: slice


def stretches_of(tokens: int, log_decay: Tensor | None) -> list[Stretch]:
    """What of a sequence is compared.

    Args:
        log_decay: ``[B, T, ...]``, what each token scales the state by; None: it is not forgotten.
    """
    if tokens <= WHOLE:
        return [Stretch("", 0, tokens, slice(None), slice(None))]
    between, last = (tokens - STRETCH) // 2 | 1, tokens - STRETCH  # odd: no chunk begins there
    found = [
        Stretch("first tokens", 0, STRETCH, slice(None), slice(None, -REACH)),
        Stretch("between", between, between + STRETCH, slice(REACH, None), slice(REACH, -REACH)),
        Stretch("last tokens", last, tokens, slice(REACH, None), slice(REACH, None)),
    ]
    if log_decay is not None and all(_forgets(log_decay, one) for one in found):
        return found
    return [Stretch("first tokens", 0, WHOLE, slice(None), slice(None))]


def compared_tokens(tokens: int) -> int:
    """Tokens that the loop goes over, about: all stretches' together."""
    return tokens if tokens <= WHOLE else 3 * STRETCH


def _forgets(log_decay: Tensor, stretch: Stretch) -> bool:
    before = log_decay[:, stretch.start : stretch.start + REACH]
    after = log_decay[:, stretch.end - REACH : stretch.end]
    return all(float(x.double().sum(1).max()) < _FORGOTTEN for x in (before, after))


def cut(x: Tensor, stretches: list[Stretch]) -> Tensor:
    """The stretches of ``[B, T, ...]`` one after the other in the batch; a parameter as it is."""
    if x.dim() == 1:
        return x
    return torch.cat([x[:, one.start : one.end] for one in stretches])


def direction(x: Tensor, stretches: list[Stretch], generator: torch.Generator) -> Tensor:
    """Random, float64, of the shape of a :func:`cut`; zero where no gradient is compared."""
    drawn = normal(x.shape, generator).to(x.device, torch.float64)
    if x.dim() == 1:
        return drawn
    kept = torch.zeros_like(drawn)
    parts = zip(stretches, kept.chunk(len(stretches)), drawn.chunk(len(stretches)), strict=True)
    for one, own, whole in parts:
        own[:, one.gradients] = whole[:, one.gradients]
    return kept


def tokens_of(stretches: list[Stretch]) -> str:
    """``tokens 1 to 1,024, 3,842 to ...``: those whose outputs are compared."""
    spans = []
    for one in stretches:
        first, last, _ = one.outputs.indices(one.end - one.start)
        spans.append(f"{one.start + first + 1:,} to {one.start + last:,}")
    return "tokens " + ", ".join(spans)
