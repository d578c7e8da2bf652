"""A group of cases that differ in who does the work: gate, warm up, time interleaved, record.

What fails is told in its row and the rest goes on, also for errors that nobody foresaw: hours of a
rented GPU are not lost to one kernel, and the command's exit code tells. A case whose memory would
not suffice, going by its own growth at shorter lengths, is not started: the system would kill the
process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from wuneng.bench.gate import GateResult
from wuneng.bench.machine import Machine
from wuneng.bench.memory import (
    OutOfMemory,
    as_out_of_memory,
    available_bytes,
    peak_bytes,
    release,
    rss_growth,
)
from wuneng.bench.record import Row
from wuneng.bench.roofline import Work
from wuneng.bench.timing import Clock, Timing, interleave

__all__ = ["Case", "Engine", "Missing", "Prepared", "Skipped", "Unsupported", "torch_dtype"]


YARDSTICKS = ("mha", "sdpa")
#: What a benchmark spends its time on, beside the machine's own rates.
STAGES = ("checks", "warm_up", "timing")


class Missing(Exception):
    """A case cannot be measured here; the message says what is missing."""

    status = "missing"


class Unsupported(Missing):
    """What is asked for is installed and does not do it: another device, type or shape."""

    status = "unsupported"


class Skipped(Missing):
    """A case that could be measured and is not; the message says why."""

    status = "skipped"


@dataclass
class Prepared:
    """A case that is ready to be called."""

    call: Callable[[int], object]
    """Takes the running number of the call and chooses its inputs by it."""
    held_bytes: int
    """What stays allocated between calls."""
    kv_bytes: int | None = None
    state_bytes: int | None = None
    cuda_graph: bool | None = None
    allocates_elsewhere: bool = False
    """What a call needs beyond ``held_bytes`` is not torch's, and so not seen."""


@dataclass
class Case:
    """Something to time; building it is left until its turn."""

    row: Row
    tokens: int
    """Tokens that one call handles."""
    work: Work
    prepare: Callable[[], Prepared]
    gate: Callable[[], GateResult] | None = None
    estimated_bytes: int = 0
    """Known lower bound of what it needs, from shapes."""
    checked_tokens: float = 0.0
    """Tokens that its check goes through one by one, forward; backward counts as four."""
    looped_tokens: float = 0.0
    """Tokens that a call goes through one by one."""


@dataclass
class Engine:
    """Runs groups of cases and keeps what they teach about memory."""

    machine: Machine
    clock: Clock
    drop_models: Callable[[], None]
    """Called before a case that did not fit beside the others is tried alone."""
    available: Callable[[], int] | None = None
    gates: list[GateResult] = field(default_factory=list)
    took: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    """Seconds by what they went to."""
    _peaks: dict[tuple[Any, ...], list[tuple[int, int, int]]] = field(default_factory=dict)
    """(length, bytes held, peak) of each series so far."""

    def run(self, cases: Sequence[Case], seconds: float) -> list[Row]:
        """One row for each case, in order. ``seconds``: what timing the group may take."""
        prepared: dict[int, Prepared] = {}
        estimates: dict[int, float] = {}
        alone: list[int] = []
        for index, case in enumerate(cases):
            try:
                self._refuse_if_too_large(case)
                if not self._passes_gate(case):
                    continue
                with self._counted("warm_up"):
                    prepared[index] = case.prepare()
                    estimates[index] = self._warm_up(case, prepared[index])
            except Exception as error:
                ready = prepared.pop(index, None)
                del ready
                if as_out_of_memory(error) and prepared:
                    alone.append(index)
                else:
                    self._tell(case.row, error)
                release(self.machine.device)
        with self._counted("timing"):
            self._time(cases, prepared, estimates, seconds)
        prepared.clear()
        for index in alone:
            self.drop_models()
            release(self.machine.device)
            self.run([cases[index]], seconds / len(cases))
            if cases[index].row.status == "ok":
                cases[index].row.note = "timed alone: it did not fit beside the others"
        return [case.row for case in cases]

    @contextmanager
    def _counted(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.took[stage] += time.perf_counter() - start

    def _passes_gate(self, case: Case) -> bool:
        if case.gate is None:
            return True
        with self._counted("checks"):
            result = case.gate()
        if result not in self.gates:
            self.gates.append(result)
        if not result.passed:
            case.row.status, case.row.note = "gate failed", result.sentence()
        return result.passed

    def _warm_up(self, case: Case, ready: Prepared) -> float:
        """First call for compilation and the resident set, second for the peak, third the time."""
        device = self.machine.device
        if device.type == "cpu":
            case.row.rss_bytes = rss_growth(lambda: ready.call(0))
        else:
            ready.call(0)
        case.row.held_bytes = ready.held_bytes
        if ready.allocates_elsewhere:
            return self.clock.seconds(case.row.arm, ready.call, 2, 1)
        peak = ready.held_bytes + peak_bytes(lambda: ready.call(1), device)
        case.row.peak_bytes = peak
        seen = (case.row.seq_len, ready.held_bytes, peak)
        self._peaks.setdefault(_series(case.row), []).append(seen)
        return self.clock.seconds(case.row.arm, ready.call, 2, 1)

    def _time(
        self,
        cases: Sequence[Case],
        prepared: dict[int, Prepared],
        estimates: dict[int, float],
        seconds: float,
    ) -> None:
        names = {index: f"{index} {cases[index].row.arm}" for index in prepared}
        timings = interleave(
            {names[i]: ready.call for i, ready in prepared.items()},
            {names[i]: estimates[i] for i in prepared},
            self.clock,
            seconds,
        )
        for index, ready in prepared.items():
            self._fill(cases[index], ready, timings[names[index]])
        yardstick = _yardstick([cases[index].row.arm for index in prepared])
        if yardstick is None:
            return
        aim = next(timings[names[i]] for i in prepared if cases[i].row.arm == yardstick)
        for index in prepared:
            row, own = cases[index].row, timings[names[index]]
            ratios = Timing(tuple(a / b for a, b in zip(aim.samples, own.samples, strict=True)))
            row.speed_ratio, row.speed_ratio_spread = ratios.median, ratios.spread
            row.speed_ratio_against = yardstick

    def _fill(self, case: Case, ready: Prepared, timing: Timing) -> None:
        row, work, rates = case.row, case.work, self.machine.rates
        row.median_ms, row.spread_ms = 1000 * timing.median, 1000 * timing.spread
        row.samples = len(timing.samples)
        row.tokens_per_second = case.tokens / timing.median
        row.flops, row.bytes = work.flops, work.bytes
        row.bound = work.bound(rates)
        row.roofline_share = work.floor_seconds(rates) / timing.median
        row.mfu = work.flops / timing.median / rates.matmul
        row.kv_bytes, row.state_bytes = ready.kv_bytes, ready.state_bytes
        if ready.kv_bytes is not None and ready.state_bytes is not None:
            row.cache_bytes = ready.kv_bytes + ready.state_bytes
        row.cuda_graph = ready.cuda_graph

    def _refuse_if_too_large(self, case: Case) -> None:
        needed = max(case.estimated_bytes, self._predicted(case.row))
        limit = self.available or (lambda: available_bytes(self.machine.device))
        left = limit()
        if needed > left:
            raise OutOfMemory(
                f"about {needed / 2**30:.1f} GiB needed, {left / 2**30:.1f} GiB available", needed
            )

    def _predicted(self, row: Row) -> int:
        """The peak at this length, going by the last shorter one: what a call allocates beyond
        what is held grows at least in proportion."""
        shorter = [seen for seen in self._peaks.get(_series(row), []) if seen[0] < row.seq_len]
        if not shorter:
            return 0
        length, held, peak = max(shorter)
        return int(held + (peak - held) * row.seq_len / length)

    def _tell(self, row: Row, error: Exception) -> None:
        full = as_out_of_memory(error)
        if full is not None:
            row.status, row.note = "out of memory", str(full)
            row.needed_bytes = full.needed or self._predicted(row) or None
        elif isinstance(error, Missing):
            row.status, row.note = error.status, str(error)
        else:
            row.status, row.note = "failed", f"{type(error).__name__}: {_first_line(error)}"


def _yardstick(arms: Sequence[str]) -> str | None:
    """Attention, where it is among them: the others are told in its speed."""
    return next((arm for arm in YARDSTICKS if arm in arms and len(arms) > 1), None)


def _series(row: Row) -> tuple[Any, ...]:
    return row.what, row.operation, row.arm, row.batch, row.dtype


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else "no message"


def torch_dtype(name: str, device: torch.device) -> tuple[str, torch.dtype]:
    """``auto`` is bf16 on a GPU (fp16 on one without), else fp32; the short name beside it."""
    from wuneng.device import autocast_dtype

    chosen = autocast_dtype(name, device) or torch.float32
    short = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    return short[chosen], chosen
