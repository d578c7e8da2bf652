"""Batches that move nothing: a loss or gradient that is not finite, or far above its recent values.

What is remembered lives in :class:`~wuneng.train.trainer_state.TrainerState`, so that a resumed run
skips the batches that an undisturbed one would have skipped.

The rule for spikes is OLMo 2's (arXiv 2501.00656): loss or gradient norm more than so many standard
deviations above its mean over recent steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from wuneng.recipe import Spikes, Training

__all__ = ["Judgement", "Skipping"]


@dataclass(frozen=True)
class Judgement:
    """What becomes of a batch; used where there is no ``reason`` against it."""

    reason: str = ""
    stops: bool = False
    """Whether the run ends here."""


@dataclass
class Skipping:
    """One arm's judge of its batches.

    ``memory`` is JSON-able: ``batches`` skipped so far, how many ``in_a_row`` at this moment, and
    with ``training.spikes`` the recent ``losses`` and ``norms``.
    """

    training: Training
    memory: dict[str, Any] = field(default_factory=dict)

    def judge(self, loss: float, norm: float, problem: str = "") -> Judgement:
        """Decide about the batch that gave ``loss`` (nats per token) and the gradients' ``norm``.

        Args:
            problem: what is not finite, in words; empty where nothing is, or where float16's scaler
                will lower its scale.
        """
        if problem and self.training.non_finite == "stop":
            return Judgement(problem, stops=True)
        reason = problem or self._spike(loss, norm)
        if not reason:
            if math.isfinite(norm):
                self.memory["in_a_row"] = 0
            return Judgement()
        self.memory["batches"] = self.batches + 1
        self.memory["in_a_row"] = in_a_row = self.memory.get("in_a_row", 0) + 1
        if in_a_row < self.training.skip_limit:
            return Judgement(reason)
        text = f"{reason}, and it is batch {in_a_row} in a row to be skipped (training.skip_limit)"
        return Judgement(text, stops=True)

    @property
    def batches(self) -> int:
        """Skipped so far."""
        return int(self.memory.get("batches", 0))

    def _spike(self, loss: float, norm: float) -> str:
        """Which of the two is an outlier, in words; both are remembered."""
        bounds = self.training.spikes
        if bounds is None or not (math.isfinite(loss) and math.isfinite(norm)):
            return ""
        found = ""
        for name, kept, value in (("loss", "losses", loss), ("gradient norm", "norms", norm)):
            recent = self.memory.setdefault(kept, [])
            found = found or _outlier(name, value, recent, bounds)
            recent.append(value)
            del recent[: -bounds.window]
        return found


def _outlier(name: str, value: float, recent: Sequence[float], bounds: Spikes) -> str:
    if len(recent) < max(2, bounds.window // 2):
        return ""
    mean = math.fsum(recent) / len(recent)
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in recent) / (len(recent) - 1))
    if not deviation or value <= mean + bounds.deviations * deviation:
        return ""
    above = (value - mean) / deviation
    return f"the {name} is {value:.4g}, {above:.1f} standard deviations above its recent mean"
