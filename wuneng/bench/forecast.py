"""About how long a benchmark takes, told before it begins and as it goes on.

``--seconds`` is what repetitions may take; checks, warm-up and the three rounds that every case has
are not bounded by it. They are counted here: calls from the work of each case and the machine's
rates, token loops by the seconds that one token of them was just measured to take. The factors are
what two CPU cores showed; compiling a GPU's kernels for the first time is not in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from wuneng.bench.architectures import Comparison
from wuneng.bench.engine import Engine
from wuneng.bench.groups import Group, operator_shapes
from wuneng.bench.machine import Rates
from wuneng.bench.models import ModelStore
from wuneng.bench.operators import OperatorShapes, wkv7_inputs
from wuneng.bench.request import BenchRequest
from wuneng.bench.timing import FEWEST_ROUNDS, SAMPLE_SECONDS, Clock
from wuneng.ops.wkv7.reference import wkv7_reference

__all__ = ["Forecast", "Parts", "forecast", "foretell", "in_words"]

#: The share of the roof that a call reaches, and what one takes however small it is.
_SHARE, _LEAST_CALL = 0.25, 1e-3
#: Calls of the warm-up: for the resident set, for the peak (watched by a profiler: as long as
#: two), for the time; and drawing the inputs.
_CALLS, _DRAWING = 4, 0.1
#: A model is built (by the second for each parameter) and called by both ways for its check.
_BUILDING, _MODEL_CHECK = 2.5e-8, 1.0
_MEASURED_TOKENS = 64


class Parts(NamedTuple):
    """Seconds by what they go to."""

    checks: float
    warm_up: float
    timing: float


@dataclass(frozen=True)
class Forecast:
    """Seconds of every group of cases.

    Attributes:
        cases: how many there are.
        tokens: of the longest.
        seconds: what repetitions may take.
    """

    groups: list[Parts]
    cases: int
    tokens: int
    seconds: float

    @property
    def parts(self) -> Parts:
        """Of all groups."""
        checks, warm_up, timing = (sum(column) for column in zip(*self.groups, strict=True))
        return Parts(checks, warm_up, max(self.seconds, timing))

    def sentence(self, device: str) -> str:
        """What is said before the first group begins."""
        checks, warm_up, timing = map(in_words, self.parts)
        compiling = "; kernels that are new here are compiled on top" if device == "cuda" else ""
        return (
            f"{self.cases} cases at up to {self.tokens:,} tokens take about "
            f"{in_words(sum(self.parts))}: checks against the reference {checks}, warm-up "
            f"{warm_up}, repetitions {timing} (--seconds {self.seconds:g}, but three rounds of "
            f"each case at least){compiling}"
        )

    def reached(self, done: int, took: float) -> str:
        """Behind a group's title: its number, and what is left once ``done`` took that long.

        Nothing is said of that until a twentieth of all is done: it tells too little.
        """
        shares = [
            checks + warm_up + self._repetitions(timing) for checks, warm_up, timing in self.groups
        ]
        before, every = sum(shares[:done]), sum(shares)
        left = ""
        if before > every / 20:
            left = f", about {in_words(took * (every - before) / before)} left"
        return f" ({done + 1} of {len(shares)}{left})"

    def _repetitions(self, timing: float) -> float:
        """What a group gets of ``seconds``, or its least rounds."""
        least = sum(own.timing for own in self.groups)
        return timing * max(self.seconds / least, 1.0) if least else 0.0


def foretell(
    request: BenchRequest,
    comparison: Comparison,
    store: ModelStore,
    engine: Engine,
    groups: Sequence[Group],
) -> Forecast:
    """What ``groups`` will take on the engine's machine."""
    if not groups:
        return Forecast([], 0, 0, request.seconds)
    shapes = operator_shapes(
        request, comparison, store, max(request.batches), max(request.seq_lens)
    )
    token = _token_seconds(shapes, engine.clock)
    sizes = {one.arm: one.parameters for one in comparison.architectures}
    return forecast(groups, engine.machine.rates, token, request.seconds, sizes)


def forecast(
    groups: Sequence[Group],
    rates: Rates,
    token: float,
    seconds: float,
    parameters: Mapping[str, int] | None = None,
) -> Forecast:
    """What ``groups`` will take.

    Args:
        token: seconds of one token of WKV-7's token loop in float64.
        seconds: what repetitions may take.
        parameters: of the model of each arm.
    """
    sizes = parameters or {}
    checked: set[tuple[str, str]] = set()
    found = []
    for group in groups:
        checks = warm_up = timing = 0.0
        for case in group.cases:
            name = (case.row.what, case.row.arm)
            of_model = case.row.what != "ops"
            built = _MODEL_CHECK + _BUILDING * sizes.get(case.row.arm, 0)
            if not (of_model and name in checked):  # a model is checked once for each use
                checks += token * case.checked_tokens + (built if of_model else 0.0)
            checked.add(name)
            call = _LEAST_CALL + case.work.floor_seconds(rates) / _SHARE
            call += token * case.looped_tokens
            warm_up += _CALLS * call + _DRAWING
            timing += FEWEST_ROUNDS * max(SAMPLE_SECONDS, call)
        found.append(Parts(checks, warm_up, timing))
    cases = [case for group in groups for case in group.cases]
    longest = max((case.row.seq_len for case in cases), default=0)
    return Forecast(found, len(cases), longest, seconds)


def _token_seconds(shapes: OperatorShapes, clock: Clock) -> float:
    """Of WKV-7's token loop in float64, per token of all its sequences, measured here."""
    inputs = [x.double() for x in wkv7_inputs(shapes, 0, _MEASURED_TOKENS)]

    @torch.no_grad()
    def loop(index: int) -> object:
        return wkv7_reference(*inputs)  # type: ignore[call-arg]

    clock.seconds("loop", loop, 0, 1)
    return clock.seconds("loop", loop, 1, 1) / _MEASURED_TOKENS


def in_words(seconds: float) -> str:
    """``40 s``, ``3 min``, ``1.5 h``: no more exact than it is known."""
    if seconds < 100:
        return f"{max(5, 5 * round(seconds / 5))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
