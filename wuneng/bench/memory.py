"""Peak memory, available memory, and telling "does not fit" from other failures.

On CUDA the caching allocator's own peak counter is read. On the CPU torch's profiler records every
tensor's allocation and release, and the running sum's peak is taken: exact, repeatable, and blind
to what the allocator or other processes hold. Beside it stands the growth of the process's
resident set (its high-water mark, reset first), which sees scratch memory outside of tensors.
"""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wuneng.device import reset_resident_peak, resident_bytes

__all__ = [
    "OutOfMemory",
    "as_out_of_memory",
    "available_bytes",
    "model_bytes",
    "peak_bytes",
    "release",
    "rss_growth",
    "tensor_bytes",
]

_UNITS = {"bytes": 1, "kib": 1024, "mib": 1024**2, "gib": 1024**3, "tib": 1024**4}
_ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+) *(bytes|[KMGT]iB)", re.IGNORECASE)
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


class OutOfMemory(Exception):
    """A case does not fit; ``needed`` bytes where that is known."""

    def __init__(self, message: str, needed: int | None = None) -> None:
        super().__init__(message)
        self.needed = needed


def as_out_of_memory(error: BaseException) -> OutOfMemory | None:
    """The error as an :class:`OutOfMemory` if it is one of the forms that torch gives it."""
    if isinstance(error, OutOfMemory):
        return error
    text = str(error)
    is_one = isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError)
        and ("can't allocate memory" in text or "not enough memory" in text)
    )
    if not is_one:
        return None
    match = _ASKED.search(text)
    if match is None:
        cpu = re.search(r"you tried to allocate (\d+) bytes", text)
        return OutOfMemory(_first_line(text), int(cpu[1]) if cpu else None)
    return OutOfMemory(_first_line(text), int(float(match[1]) * _UNITS[match[2].lower()]))


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:200] if text.strip() else "out of memory"


def available_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated; a container's limit counts."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + cached
    free = _system_available()
    for limit, used in _CGROUPS:
        try:
            left = int(Path(limit).read_text()) - int(Path(used).read_text())
        except (OSError, ValueError):
            continue  # no such file, or "max"
        free = min(free, left)
    return max(0, free)


def _system_available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 2**63


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Peak of what ``call`` allocates beyond what there is when it starts."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # The profiler's library writes two lines to stderr unless it is told not to.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as done:
        call()
    return _highest(_allocations(done))


def _allocations(done: Any) -> Iterable[tuple[int, int]]:
    """(time, bytes) of every allocation (positive) and release (negative)."""
    for event in done.profiler.kineto_results.events():
        if event.name() == "[memory]":
            yield event.start_ns(), event.nbytes()


def _highest(changes: Iterable[tuple[int, int]]) -> int:
    held = highest = 0
    for _, size in sorted(changes, key=lambda change: change[0]):
        held += size
        highest = max(highest, held)
    return highest


def rss_growth(call: Callable[[], object]) -> int | None:
    """Growth of the process's peak resident set during ``call``; None where it cannot be told."""
    try:
        reset_resident_peak()
        before = resident_bytes("VmRSS")
    except OSError:
        call()
        return None
    call()
    return max(0, resident_bytes("VmHWM") - before)


def tensor_bytes(*tensors: Tensor | None) -> int:
    """Bytes of the tensors' elements."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def model_bytes(model: nn.Module) -> int:
    """Bytes of parameters (a tied one once) and buffers."""
    return tensor_bytes(*model.parameters(), *model.buffers())


def release(device: torch.device) -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
