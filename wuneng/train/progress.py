"""How far an arm is: what the loop tells whoever watches."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Progress", "clock", "short_number"]


@dataclass(frozen=True)
class Progress:
    """The state of one arm after a step."""

    arm: str
    seed: int
    step: int
    total_steps: int
    loss: float
    """Nats per scored token."""
    learning_rate: float
    grad_norm: float
    tokens_per_second: float
    seconds_left: float
    logged: bool
    """Whether this step has a line in metrics.jsonl."""
    validation: dict[str, float] = field(default_factory=dict)
    """The figures measured at this step, if any were."""
    skipped: str = ""
    """Why this step's batch moved nothing; empty where it did."""
    skipped_batches: int = 0
    """So far."""
    unit: str = ""
    """What to call it where several train side by side; else the arm is trained alone."""


def short_number(value: float) -> str:
    """``12.3k``."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f}{unit}"
    return f"{value:.0f}"


def clock(seconds: float) -> str:
    """``1:02:05``."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"
