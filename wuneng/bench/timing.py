"""Clocks, interleaved repetitions, medians and spread.

Cases of one group are timed in turn, A B A B, so that a slow phase of the machine falls on all of
them. A sample is the mean of as many calls as fill ``SAMPLE_SECONDS``; each call gets the next of
its case's inputs, so that none finds the last call's data in the cache.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

__all__ = ["Clock", "CudaClock", "Timing", "WallClock", "clock_for", "interleave", "rounds_for"]

SAMPLE_SECONDS = 0.02
FEWEST_ROUNDS = 3
MOST_ROUNDS = 25

Call = Callable[[int], object]


class Clock(Protocol):
    """Times calls; tests plant one that answers without calling."""

    def seconds(self, name: str, call: Call, first: int, repeats: int) -> float:
        """Seconds that ``call(first)`` ... ``call(first + repeats - 1)`` take together."""
        ...


class WallClock:
    """``perf_counter``: for the CPU, where a call returns when its work is done."""

    def seconds(self, name: str, call: Call, first: int, repeats: int) -> float:
        """See :class:`Clock`."""
        start = time.perf_counter()
        for index in range(first, first + repeats):
            call(index)
        return time.perf_counter() - start


class CudaClock:
    """Events on the current CUDA stream."""

    def __init__(self, device: Any) -> None:
        self.device = device

    def seconds(self, name: str, call: Call, first: int, repeats: int) -> float:
        """See :class:`Clock`."""
        import torch

        with torch.cuda.device(self.device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            for index in range(first, first + repeats):
                call(index)
            end.record()
            torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000


class MpsClock(WallClock):
    """``perf_counter`` around work that is waited for."""

    def seconds(self, name: str, call: Call, first: int, repeats: int) -> float:
        """See :class:`Clock`."""
        import torch

        torch.mps.synchronize()

        def call_and_wait(index: int) -> None:
            call(index)
            if index == first + repeats - 1:
                torch.mps.synchronize()

        return super().seconds(name, call_and_wait, first, repeats)


def clock_for(device: Any) -> Clock:
    """The clock of a torch device."""
    if device.type == "cuda":
        return CudaClock(device)
    return MpsClock() if device.type == "mps" else WallClock()


@dataclass(frozen=True)
class Timing:
    """Seconds per call, one value a sample."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds per call."""
        return median(self.samples)

    @property
    def spread(self) -> float:
        """Interquartile range in seconds: half of all samples lie within it."""
        return quantile(self.samples, 0.75) - quantile(self.samples, 0.25)


def quantile(values: Sequence[float], q: float) -> float:
    """Linear interpolation between order statistics."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def rounds_for(seconds: float, one_round: float) -> int:
    """Repetitions that fit into ``seconds``, at least three."""
    if one_round <= 0:
        return MOST_ROUNDS
    return max(FEWEST_ROUNDS, min(MOST_ROUNDS, int(seconds / one_round)))


def interleave(
    calls: Mapping[str, Call], estimates: Mapping[str, float], clock: Clock, seconds: float
) -> dict[str, Timing]:
    """Time every call in turn, round after round.

    Args:
        calls: each takes the running number of the call, to choose its inputs by.
        estimates: seconds of one call, from the warm-up.
        seconds: what all rounds together may take, as far as three rounds fit.
    """
    repeats = {
        name: max(1, math.ceil(SAMPLE_SECONDS / max(estimates[name], 1e-6))) for name in calls
    }
    rounds = rounds_for(seconds, sum(estimates[name] * repeats[name] for name in calls))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name, call in calls.items():
            count = repeats[name]
            taken = clock.seconds(name, call, number * count, count)
            samples[name].append(taken / count)
    return {name: Timing(tuple(values)) for name, values in samples.items()}
