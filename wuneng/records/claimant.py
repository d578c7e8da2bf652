"""Who claims a directory, and what its claim says of it to others."""

from __future__ import annotations

import json
import os
import socket
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Claimant", "Holder"]

#: Bytes of a claim: always as many, so that it is changed in place and never seen cut short.
_SIZE = 512


def _machine() -> str:
    """What two processes share that can see each other's numbers: a boot of a kernel, and a
    container's own numbering."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return f"{uuid.getnode():x}"


@dataclass(frozen=True)
class Claimant:
    """A process that claims: where it runs, and how often it shows that it is alive."""

    host: str = field(default_factory=socket.gethostname)
    """As people know it."""
    machine: str = field(default_factory=_machine)
    """Equal where process ids can be compared."""
    beat: float = 5.0
    """Seconds between two signs of life."""
    patience: int = 12
    """Beats without one after which others may take over."""

    @property
    def lease(self) -> float:
        """Seconds for which a claim holds without a sign of life."""
        return self.beat * self.patience

    def told(self, beats: int) -> bytes:
        """The content of a claim of this process, ``_SIZE`` bytes."""
        process = os.getpid()
        told = {
            "host": self.host[:100],
            "machine": self.machine[:100],
            "process": process,
            "started": _started(process),
            "beat": self.beat,
            "patience": self.patience,
            "beats": beats,
        }
        text = json.dumps(told, ensure_ascii=False)
        return text.encode("ascii", "replace").ljust(_SIZE - 1) + b"\n"


@dataclass(frozen=True)
class Holder:
    """What a claim says."""

    host: str
    machine: str
    process: int
    started: int
    beat: float
    lease: float
    beats: int = 0
    """Signs of life so far."""

    @classmethod
    def read(cls, content: bytes, asking: Claimant) -> Holder:
        """Of a claim that is only just being made, or of another version, nothing is known but that
        it is there."""
        try:
            told = json.loads(content)
            return cls(
                str(told["host"]),
                str(told["machine"]),
                int(told["process"]),
                int(told["started"]),
                float(told["beat"]),
                float(told["beat"]) * int(told["patience"]),
                int(told["beats"]),
            )
        except (ValueError, KeyError, TypeError):
            return cls("an unknown host", "", 0, 0, asking.beat, asking.lease)

    def __str__(self) -> str:
        return f"{self.host}, process {self.process}" if self.process else self.host

    def has_ended(self, asking: Claimant) -> bool:
        """Whether it is known to run no more: its process was one of the machine that asks."""
        if self.machine != asking.machine or not self.process:
            return False
        with suppress(PermissionError):  # another user's
            try:
                os.kill(self.process, 0)
            except ProcessLookupError:
                return True
        return _started(self.process) not in (0, self.started)


def _started(process: int) -> int:
    """When a process began, in ticks since the machine did; -1: it has ended, 0: not known."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return -1 if Path("/proc/self/stat").exists() else 0
    except OSError:
        return 0
    fields = text.rpartition(")")[2].split()
    return -1 if fields[0] in ("Z", "X") else int(fields[19])
