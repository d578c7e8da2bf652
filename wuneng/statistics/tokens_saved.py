"""How many fewer tokens an arm needs for the loss that the baseline ends with.

Read from validation curves. For each data order the baseline's last loss is the goal; the arm has
reached it where its own curve first falls to it, straight lines between evaluations. What is
averaged over orders is the logarithm of the ratio of tokens, with Student's interval. The arm is
compared in the middle of its schedule with a baseline at the end of its own, where the learning
rate has decayed, so the figure errs on the baseline's side.

An arm that never gets there is *censored*: it needs more tokens than it was given, and its order
counts with those, so that the saving is at most the figure told. Then there is no interval: nothing
is known of its lower end, and orders that all count with the same tokens have a spread too small
for the upper one (of two orders it would lie below a true saving of half a standard deviation in
one case of ten).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wuneng.statistics.student import t_quantile

__all__ = ["Curve", "TokensSaved", "tokens_saved", "tokens_to_reach"]

Curve = Sequence[tuple[float, float]]
"""(tokens, loss) of each evaluation, tokens growing; lower losses are better."""


@dataclass(frozen=True)
class TokensSaved:
    """Shares of the baseline's tokens; negative where the arm needs more.

    Attributes:
        saved: 1 - (geometric mean over orders of the arm's tokens / the baseline's); with a
            censored order, at most this.
        interval: 95 %, over orders; None of one order, with a censored one, and of orders that are
            all alike, as when each had got there by its first evaluation: no spread is known.
        orders: data orders (seeds) that were paired.
        censored: of them, those in which the arm never reached the baseline's loss.
    """

    saved: float
    interval: tuple[float, float] | None
    orders: int
    censored: int


def tokens_saved(arm: Mapping[int, Curve], baseline: Mapping[int, Curve]) -> TokensSaved | None:
    """The saving of an arm over the data orders that both were trained in.

    Args:
        arm, baseline: the validation curve of each data order (its seed).

    Returns:
        None where no order has both curves, the arm's of at least two evaluations, with a finite
        last loss of the baseline.
    """
    ratios, censored = [], 0
    for order in arm:
        curve, other = arm[order], baseline.get(order, ())
        if len(curve) < 2 or not other or not math.isfinite(other[-1][1]):
            continue  # a curve of one evaluation does not say when it got there
        needed = tokens_to_reach(curve, other[-1][1])
        censored += needed is None
        ratios.append(math.log((curve[-1][0] if needed is None else needed) / other[-1][0]))
    if not ratios:
        return None
    found = np.array(ratios)
    mean = float(found.mean())
    interval = None
    if np.ptp(found) > 0 and not censored:
        half = t_quantile(0.95, len(found) - 1) * float(found.std(ddof=1)) / math.sqrt(len(found))
        interval = 1 - math.exp(mean + half), 1 - math.exp(mean - half)
    return TokensSaved(1 - math.exp(mean), interval, len(found), censored)


def tokens_to_reach(curve: Curve, loss: float) -> float | None:
    """Tokens at which a curve first falls to ``loss``; None where it never does.

    A curve that starts below it has reached it at its first evaluation: no earlier is known.
    """
    before: tuple[float, float] | None = None
    for tokens, value in curve:
        if value <= loss:
            if before is None:
                return tokens
            share = (before[1] - loss) / (before[1] - value)
            return before[0] + share * (tokens - before[0])
        before = (tokens, value) if math.isfinite(value) else None
    return None
