"""The machine's own rates, measured: what the roofline is drawn from.

bandwidth   bytes read plus bytes written per second of copying an array far larger than the cache
matmul      floating-point operations per second of a large square matrix product, in the type
            that is benchmarked

Both are measured at the start, between the kinds of cases and at the end. The roof is the best of
all samples. The medians at the start and at the end show what other work on the machine took away;
a comparison between two runs counts their drift as noise.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from wuneng.bench.timing import Clock

__all__ = ["Machine", "Probe", "Rates", "clocks_mhz", "load_average", "measure_rates"]

_ELEMENTS = {"cpu": 2**25, "cuda": 2**28, "mps": 2**26}
_WIDTH = {"cpu": 1024, "cuda": 8192, "mps": 4096}
_SAMPLES = 9


@dataclass(frozen=True)
class Rates:
    """What the machine reaches."""

    bandwidth: float
    """Bytes per second."""
    matmul: float
    """Floating-point operations per second."""

    def to_json(self) -> dict[str, float]:
        """Ready for bench.json."""
        return {"bandwidth_bytes_per_second": self.bandwidth, "matmul_flops": self.matmul}


@dataclass(frozen=True)
class Probe:
    """One measurement of the rates."""

    best: Rates
    typical: Rates
    """Medians."""


@dataclass
class Machine:
    """Where the numbers come from."""

    device: torch.device
    dtype: torch.dtype
    probes: list[Probe] = field(default_factory=list)
    threads: int = field(default_factory=torch.get_num_threads)
    clocks: dict[str, float | None] = field(default_factory=dict)
    load: dict[str, list[float] | None] = field(default_factory=dict)

    def probe(self, clock: Clock) -> None:
        """Measure the rates once more."""
        self.probes.append(measure_rates(self.device, self.dtype, clock))

    @property
    def rates(self) -> Rates:
        """The best that was seen: a roof that load lowered is no roof."""
        return Rates(
            max(probe.best.bandwidth for probe in self.probes),
            max(probe.best.matmul for probe in self.probes),
        )

    def to_json(self) -> dict[str, Any]:
        """Ready for bench.json."""
        return {
            "device": str(self.device),
            "accelerator": _accelerator(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "threads": self.threads,
            "wait_policy": os.environ.get("OMP_WAIT_POLICY"),
            "spin_count": os.environ.get("GOMP_SPINCOUNT"),
            "rates": self.rates.to_json(),
            "rates_at_start": self.probes[0].typical.to_json(),
            "rates_at_end": self.probes[-1].typical.to_json(),
            "clock_mhz": self.clocks,
            "load_average": self.load,
        }


def measure_rates(device: torch.device, dtype: torch.dtype, clock: Clock) -> Probe:
    """Copy bandwidth and matmul rate."""
    count = _ELEMENTS[device.type]
    source = torch.ones(count, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    copies = _samples("copy", lambda _: target.copy_(source), clock)
    width = _WIDTH[device.type]
    a, b = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))
    products = _samples("matmul", lambda _: torch.mm(a, b), clock)

    def rates(choose: Callable[[list[float]], float]) -> Rates:
        return Rates(2 * 4 * count / choose(copies), 2 * width**3 / choose(products))

    return Probe(best=rates(min), typical=rates(median))


def _samples(name: str, call: Any, clock: Clock) -> list[float]:
    clock.seconds(name, call, 0, 2)
    return [clock.seconds(name, call, 0, 1) for _ in range(_SAMPLES)]


def load_average() -> list[float] | None:
    """Runnable processes over 1, 5 and 15 minutes; None where the system does not tell."""
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except (AttributeError, OSError):
        return None


def clocks_mhz(device: torch.device) -> float | None:
    """The processor's or GPU's clock as the system reports it now."""
    if device.type == "cuda":
        return _gpu_clock(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    values = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    return median(values) if values else None


def _gpu_clock(device: torch.device) -> float | None:
    command = [
        "nvidia-smi",
        f"--id={device.index or 0}",
        "--query-gpu=clocks.sm",
        "--format=csv,noheader,nounits",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return float(done.stdout.strip())
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _accelerator(device: torch.device) -> str | None:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None
