"""Records made by hand or measured with a planted clock."""

from __future__ import annotations

import random
from typing import Any

from wuneng.bench.request import BenchRequest, make_request
from wuneng.bench.session import run_benchmark


class PlantedClock:
    """Answers with the seconds that a case is said to take, times jitter; calls once."""

    def __init__(
        self, seed: int, factors: dict[str, float] | None = None, jitter: float = 0.02
    ) -> None:
        self.random, self.jitter = random.Random(seed), jitter
        self.factors = factors or {}
        self.order: list[str] = []

    def seconds(self, name: str, call: Any, first: int, repeats: int) -> float:
        self.order.append(name)
        arm = name.rpartition(" ")[2]
        return repeats * 0.01 * self.factors.get(arm, 1.0) * self.random.gauss(1.0, self.jitter)


def tiny_request(**changes: Any) -> BenchRequest:
    """Two short lengths, the built-in small model."""
    options: dict[str, Any] = {"seq_len": "16,32", "what": "decode", "seconds": 4.0}
    return make_request(**{**options, **changes}, device="cpu")


def record_of(
    seed: int = 0, factors: dict[str, float] | None = None, jitter: float = 0.02, **changes: Any
) -> Any:
    """A record with planted times."""
    return run_benchmark(tiny_request(**changes), clock=PlantedClock(seed, factors, jitter))
