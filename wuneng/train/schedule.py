"""The learning rate as a pure function of the step: linear warm-up, then one of three shapes.

    cosine     half a cosine from the peak down to ``minimum_ratio`` of it at the last update
    wsd        the peak, then a straight line down over the last ``decay_fraction`` of all updates
    constant   the peak

Nothing here remembers anything, so a resumed run needs no schedule state to continue exactly.
"""

from __future__ import annotations

import math

from wuneng.recipe import Training

__all__ = ["learning_rate_at", "shape_factor", "steps_before_decay"]


def learning_rate_at(step: int, total_steps: int, training: Training) -> float:
    """The learning rate of update number ``step`` (0-based) out of ``total_steps``."""
    return training.learning_rate * shape_factor(
        step,
        total_steps,
        kind=training.schedule,
        warmup_steps=training.warmup_steps,
        minimum_ratio=training.min_learning_rate_ratio,
        decay_fraction=training.decay_fraction,
    )


def steps_before_decay(total_steps: int, training: Training) -> int:
    """How many of the first updates a run of more steps makes at the same rates (wsd, constant)."""
    if training.schedule == "constant":
        return total_steps
    falling = _falling_steps(total_steps, training.warmup_steps, training.decay_fraction)
    return total_steps - falling


def _falling_steps(total_steps: int, warmup_steps: int, decay_fraction: float) -> int:
    # A warm-up that reaches into the decay shortens the decay, never the other way round.
    return min(max(1, round(decay_fraction * total_steps)), total_steps - warmup_steps)


def shape_factor(
    step: int,
    total_steps: int,
    *,
    kind: str,
    warmup_steps: int,
    minimum_ratio: float,
    decay_fraction: float,
) -> float:
    """What the peak learning rate is multiplied with at update ``step`` (0-based), in (0, 1].

    Warm-up reaches 1 at update ``warmup_steps - 1``; cosine and wsd reach ``minimum_ratio`` at the
    last update, ``total_steps - 1``.

    Raises:
        ValueError: ``kind`` is not a known shape.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if kind == "constant":
        return 1.0
    if kind == "cosine":
        falling = max(1, total_steps - warmup_steps)
        progress = min(1.0, (step + 1 - warmup_steps) / falling)
        return minimum_ratio + (1 - minimum_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
    if kind == "wsd":
        falling = _falling_steps(total_steps, warmup_steps, decay_fraction)
        left = max(0, total_steps - (step + 1))
        return minimum_ratio + (1 - minimum_ratio) * min(1.0, left / max(1, falling))
    raise ValueError(f"schedule must be cosine, wsd or constant, got {kind!r}")
