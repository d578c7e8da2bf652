"""Which device and precision a run uses, and the record of the machine it ran on.

torch is imported inside the functions: this module is read by commands that only print help.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wuneng.errors import InputError, nearest

if TYPE_CHECKING:
    import torch

__all__ = [
    "WORLD_SIZES",
    "autocast_dtype",
    "environment",
    "host_memory",
    "pick_device",
    "require_one_process",
    "reset_resident_peak",
    "resident_bytes",
    "source_version",
    "usable_cores",
]

# What torchrun, accelerate and the MPI launchers tell each process that they start.
WORLD_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_KINDS = ("auto", "cpu", "cuda", "mps")
_PACKAGES = (
    "wuneng",
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "safetensors",
    "lm_eval",
    "numpy",
    "triton",
)


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; ``auto`` is CUDA, else Apple's GPU, else the CPU.

    Raises:
        InputError: the name is unknown, or this machine has no such device.
    """
    import torch

    match = re.fullmatch(r"(auto|cpu|cuda|mps)(?::(\d+))?", name)
    if match is None or (match[2] is not None and match[1] != "cuda"):
        raise InputError(
            f"device: expected auto, cpu, cuda, cuda:N or mps, got {name!r}.{nearest(name, _KINDS)}"
        )
    kind = match[1]
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu"
    if kind == "cuda":
        _check_cuda(name, int(match[2] or 0))
    if kind == "mps" and not _has_mps():
        raise InputError(f"device {name}: torch {torch.__version__} sees no Apple GPU here")
    return torch.device(kind if match[2] is None else f"{kind}:{match[2]}")


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The type to autocast to, None for plain float32.

    ``auto`` is bfloat16 on a GPU that computes in it, float16 on an older GPU, else float32.

    Raises:
        InputError: the precision is unknown, or the device does not have it.
    """
    import torch

    if precision == "auto":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    known = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision not in known:
        raise InputError(
            f"precision: expected auto, fp32, bf16 or fp16, got {precision!r}."
            f"{nearest(precision, known)}"
        )
    if precision == "fp16" and device.type == "cpu":
        raise InputError("precision fp16 needs a GPU; on the CPU use fp32 or bf16")
    return known[precision]


def require_one_process() -> None:
    """Refuse to be one of several processes that a launcher started.

    Each of them would do all of the work, into a directory of its own.

    Raises:
        InputError: the launcher's variable says that there are several.
    """
    for name in WORLD_SIZES:
        size = os.environ.get(name, "")
        if size.isdecimal() and int(size) > 1:
            raise InputError(
                f"{name} is {size}: expected one process, got {size}. Of several, which train one "
                "arm together, `wuneng train` of a single run alone makes use; each would repeat "
                "all of this. Start it without the launcher (torchrun, accelerate, mpirun); "
                "--device cuda:N chooses among several GPUs"
            )


def host_memory() -> int:
    """Bytes of this machine's memory."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):  # not told on every system
        return 1 << 34


def environment(command_line: Sequence[str]) -> dict[str, Any]:
    """What a run should say about where it ran; goes into environment.json."""
    return {
        "schema": 1,
        "command_line": list(command_line),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": usable_cores(),
        "accelerators": _accelerators(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "git_commit": _git_commit(),
    }


def _has_mps() -> bool:
    import torch

    return torch.backends.mps.is_available()


def _check_cuda(name: str, index: int) -> None:
    import torch

    if not torch.cuda.is_available():
        raise InputError(
            f"device {name}: torch {torch.__version__} sees no CUDA device here; leave the device "
            "out or use cpu"
        )
    count = torch.cuda.device_count()
    if index >= count:
        raise InputError(f"device {name}: this machine has {count}, the last is cuda:{count - 1}")


def _processor() -> str:
    """The CPU's model name, where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _accelerators() -> list[str]:
    import torch

    if not torch.cuda.is_available():
        return ["mps"] if _has_mps() else []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def source_version() -> dict[str, str | None]:
    """This package's version, and the last commit that changed it; other files of the repository,
    as documents, do not count."""
    commit = _commit("log", "-1", "--format=%H", "--", ".", changes_in=("--", "."))
    return {"wuneng": _version("wuneng"), "git_commit": commit}


def _git_commit() -> str | None:
    """Commit of the source this package runs from, ``-dirty`` when files differ; None elsewhere."""
    return _commit("rev-parse", "HEAD")


def _commit(*asked: str, changes_in: Sequence[str] = ()) -> str | None:
    source = Path(__file__).resolve().parent
    try:
        # A package inside somebody else's repository (a virtual environment) is not its commit.
        _git(source, "ls-files", "--error-unmatch", Path(__file__).name)
        commit = _git(source, *asked)
        changed = _git(source, "status", "--porcelain", "--untracked-files=no", *changes_in)
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}-dirty" if changed else commit


def _git(directory: Path, *arguments: str) -> str:
    command = ["git", "-C", str(directory), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def reset_resident_peak() -> None:
    """Reset the high-water mark of this process's resident set. OSError where it cannot be."""
    # 5 resets it (proc(5)).
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def resident_bytes(field: str) -> int:
    """``VmRSS``, the resident set now, or ``VmHWM``, at most. OSError where there is no such."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
