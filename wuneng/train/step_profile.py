"""A few steps of an arm under torch's profiler: a trace to look at, and where the time went.

    profile/trace.json.gz   for Perfetto (ui.perfetto.dev) or chrome://tracing
            where.json      the same as numbers: by part of the model, and by operator

Watching changes no bit of the run; the profiler's own cost is in its times: read shares.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from wuneng.model.time_by_part import labelled, times_by_part
from wuneng.records import write_json
from wuneng.records.atomic import directory_written_atomically
from wuneng.train.step_range import StepRange

__all__ = ["TRACE", "WHERE", "StepProfile"]

TRACE, WHERE = "trace.json.gz", "where.json"
_SILENT = "99"
_OPERATORS = 20
"""That where.json lists, those that took longest."""


class StepProfile:
    """Of the steps ``wanted``, into ``directory``; of none where that is None. A context, which
    writes what there is when the run ends early.

    Args:
        model: whose modules are told apart by part; None where it is compiled, and they cannot be.
        warn: told where none of the steps was taken.
    """

    def __init__(
        self,
        wanted: StepRange | None,
        directory: Path,
        model: nn.Module | None,
        device: torch.device,
        warn: Callable[[str], None],
    ) -> None:
        self._wanted, self._directory, self._model = wanted, directory, model
        self._device, self._warn = device, warn
        self._running: profile | None = None
        self._labels = ExitStack()
        self._steps: list[int] = []

    @contextmanager
    def of(self, step: int) -> Iterator[None]:
        """Around ``step``. DiskError when the disk refuses what is written after the last."""
        if self._wanted is None or step not in self._wanted:
            yield
            return
        if self._running is None:
            self._begin()
        with record_function(f"step {step}"):
            yield
        self._steps.append(step)
        if step == self._wanted.last:
            self._end()

    def __enter__(self) -> StepProfile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._running is not None:
            self._end()
        elif error is None and self._wanted is not None and not self._steps:
            self._warn(
                f"--profile {self._wanted}: these steps were taken before this session; nothing "
                "was recorded"
            )

    def _begin(self) -> None:
        if self._model is not None:
            self._labels.enter_context(labelled(self._model))
        on_cuda = self._device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
        # Kineto writes a line on stderr as it starts and one as it stops, below this level.
        os.environ.setdefault("KINETO_LOG_LEVEL", _SILENT)
        self._running = profile(activities=activities, acc_events=True)
        self._running.start()

    def _end(self) -> None:
        running, self._running = self._running, None
        assert running is not None
        on_cuda = self._device.type == "cuda"
        if on_cuda:
            torch.cuda.synchronize(self._device)
        running.stop()
        self._labels.close()
        if not self._steps:
            return
        with directory_written_atomically(self._directory, 1 << 20) as temporary:
            running.export_chrome_trace(str(temporary / TRACE))
            write_json(temporary / WHERE, _where(running, self._steps, on_cuda=on_cuda))


def _where(done: profile, steps: list[int], *, on_cuda: bool) -> dict[str, Any]:
    """Milliseconds of a step and shares of the whole, the largest first."""
    parts = times_by_part(list(done.events() or []), on_cuda=on_cuda)
    total = sum(part.forward + part.backward for part in parts.values()) or 1.0
    by_part: list[dict[str, Any]] = [
        {
            "part": name,
            "forward_ms": 1000 * part.forward / len(steps),
            "backward_ms": 1000 * part.backward / len(steps),
            "share": (part.forward + part.backward) / total,
        }
        for name, part in parts.items()
    ]
    key = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    averages = sorted(done.key_averages(), key=lambda one: getattr(one, key), reverse=True)
    by_operator = [
        {
            "operator": one.key,
            "calls": one.count / len(steps),
            "ms": getattr(one, key) / 1000 / len(steps),
            "share": getattr(one, key) / 1e6 / total,
        }
        for one in averages[:_OPERATORS]
    ]
    by_part.sort(key=lambda one: one["share"], reverse=True)
    return {
        "schema": 1,
        "steps": [steps[0], steps[-1]],
        "parts": by_part,
        "operators": by_operator,
    }
