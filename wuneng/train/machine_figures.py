"""What training takes of the machine: peak memory, and the share of its arithmetic that is used."""

from __future__ import annotations

import sys
from contextlib import suppress

import torch

from wuneng.device import reset_resident_peak, resident_bytes
from wuneng.distributed.processes import Processes
from wuneng.train.data_sheets import card_named

__all__ = [
    "machine_figures",
    "peak_flops",
    "peak_memory",
    "reset_peak",
]


def machine_figures(
    processes: Processes, device: torch.device, dtype: torch.dtype | None, flops_per_second: float
) -> dict[str, float]:
    """For a row of metrics.jsonl: ``peak_memory_bytes``, the largest of all processes, and ``mfu``,
    the FLOPs of training per second as a share of the device's peak. Each only where it is known.
    All processes call this together."""
    own, peak = peak_memory(device), peak_flops(device, dtype)
    memory = _largest(processes, own)
    found: dict[str, float] = {} if memory is None else {"peak_memory_bytes": memory}
    if peak is not None and flops_per_second:
        found["mfu"] = round(flops_per_second / peak, 4)
    return found


def _largest(processes: Processes, own: int | None) -> int | None:
    unknown = -1
    given = torch.tensor([unknown if own is None else own])
    largest = int(processes.gathered(given).max())
    return None if largest == unknown else largest


def peak_flops(device: torch.device, dtype: torch.dtype | None) -> float | None:
    """FLOP/s that the device can do at most in matrix products of ``dtype``.

    None where that is not known: on a CPU, on a card of no data sheet here, in float32.
    """
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    card = card_named(torch.cuda.get_device_name(device))
    return None if card is None else card.flops


def reset_peak(device: torch.device) -> None:
    """Let :func:`peak_memory` speak of what comes from now on, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        reset_resident_peak()


def peak_memory(device: torch.device) -> int | None:
    """Bytes: of tensors on a CUDA device; else of the process's resident set, since
    :func:`reset_peak` on Linux and since its start elsewhere. None where nobody tells."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        return resident_bytes("VmHWM")
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
