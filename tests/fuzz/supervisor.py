"""Cases in forked workers, each with a limit on time and memory, and a verdict on each.

A worker runs many cases one after the other; whatever kills it is held against the case that it was
running. Fine is a command that ends with 0, 1 or 2 and, where that is not 0, says why in a message.
A finding is anything else: a traceback, more than ``SECONDS`` or ``GROWTH`` bytes, a signal.
"""

from __future__ import annotations

import io
import json
import os
import resource
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Protocol

from wuneng.errors import WuNengError

__all__ = ["Kind", "Verdict", "random_of", "run_cases", "tried"]

#: Processor seconds that a case may take: other work on the machine does not count against it.
SECONDS = 10.0
#: Seconds on the clock, for a case that waits for something that never comes. A machine that stands
#: still for that long looks the same, so that such a case counts only when it does so twice.
CLOCK_SECONDS = 60.0
WAITS = "waited in vain"
GROWTH = 2 << 30
LONGEST_MESSAGE = 10_000
_CASES_OF_WORKER = 2000


class Kind(Protocol):
    """One kind of file, or of place, that a user may hand over."""

    name: str

    def case(self, random: Random, directory: Path) -> Callable[[], object]:
        """Write a mutant into the empty ``directory``; returns what a user would do with it."""


@dataclass(frozen=True)
class Verdict:
    """What became of a case. ``outcome``: accepted, refused, or a finding by its name."""

    kind: str
    number: int
    outcome: str
    seconds: float
    growth: int
    detail: str

    @property
    def fine(self) -> bool:
        """Whether this is what a user should see."""
        return self.outcome in ("accepted", "refused", "failed")


def random_of(seed: int, kind: str, number: int) -> Random:
    """The random numbers of one case, whichever other cases are run."""
    return Random(f"{seed}/{kind}/{number}")


def tried(call: Callable[[], object]) -> tuple[str, str]:
    """Outcome and detail of a call, as the command line would treat what it raises."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    code: Any = 0
    message = ""
    try:
        with redirect_stdout(out), redirect_stderr(err):
            call()
    except WuNengError as error:
        code, message = error.exit_code, str(error)
    except SystemExit as error:
        code = 0 if error.code is None else error.code
        err.flush()
        message = err.buffer.getvalue().decode("utf-8")  # type: ignore[attr-defined]
    except MemoryError:
        return "memory", traceback.format_exc()
    except BaseException:
        return "traceback", traceback.format_exc()
    if code not in (0, 1, 2):
        return "exit code", f"{code}: {message}"
    if code and not message.strip():
        return "no message", f"exit code {code}"
    if "Traceback (most" in message or "not enough memory" in message:
        return "traceback", message
    if len(message) > LONGEST_MESSAGE:
        return "long message", f"{len(message)} characters: {message[:300]}"
    return ("accepted", "refused", "failed")[(0, 2, 1).index(code)], message


def run_cases(
    kinds: Sequence[tuple[Kind, int]], seed: int, work: Path, first: int = 0
) -> Iterator[Verdict]:
    """Run so many cases of each kind; a mutant that is found stays in ``work/findings``."""
    plan = [(kind, number) for kind, count in kinds for number in range(first, first + count)]
    Random(seed).shuffle(plan)
    waited = None
    while plan:
        batch, plan = plan[:_CASES_OF_WORKER], plan[_CASES_OF_WORKER:]
        done = 0
        for verdict in _worker(batch, seed, work):
            if verdict.detail == WAITS and waited != (verdict.kind, verdict.number):
                waited = (verdict.kind, verdict.number)
                break
            done += 1
            if not verdict.fine:
                kept = work / "findings" / f"{verdict.kind}-{verdict.number}"
                shutil.rmtree(kept, ignore_errors=True)
                if (work / "case").is_dir():
                    shutil.copytree(work / "case", kept, symlinks=True)
                kept.mkdir(parents=True, exist_ok=True)
                (kept / "VERDICT.txt").write_text(
                    f"{verdict.outcome}\n{verdict.detail}", errors="backslashreplace"
                )
            yield verdict
        plan = batch[done:] + plan


def _worker(batch: Sequence[tuple[Kind, int]], seed: int, work: Path) -> Iterator[Verdict]:
    """Verdicts of a batch, ending early with the case that the worker did not survive or repeat.

    The worker waits for a byte after each finding, so that its files can be saved first.
    """
    reader, writer = os.pipe()
    go_reader, go_writer = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if not child:
        try:
            os.close(reader)
            os.close(go_writer)
            _work(batch, seed, work, writer, go_reader)
        finally:
            os._exit(0)
    os.close(writer)
    os.close(go_reader)
    try:
        yield from _watched(batch, child, reader, go_writer)
    finally:
        os.close(reader)
        os.close(go_writer)
        _end(child)


def _work(batch: Sequence[tuple[Kind, int]], seed: int, work: Path, report: int, go: int) -> None:
    os.setsid()
    silence = os.open(os.devnull, os.O_RDWR)
    os.dup2(silence, 0)
    os.dup2(silence, 2)  # Rust's panics write there by themselves
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (6 << 30), resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, resource.RLIM_INFINITY))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for kind, number in batch:
        directory = work / "case"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        os.chdir(directory)
        call = kind.case(random_of(seed, kind.name, number), directory)
        before = _resident(reset=True)
        start = time.process_time()
        os.write(report, b"start\n")
        outcome, detail = tried(call)
        seconds, growth = time.process_time() - start, _resident() - before
        if outcome in ("accepted", "refused", "failed"):
            if seconds > SECONDS:
                outcome, detail = "hang", f"{seconds:.1f} s; {outcome}: {detail}"
            elif growth > GROWTH:
                outcome, detail = "memory", f"{growth >> 20} MiB; {outcome}: {detail}"
        line = json.dumps([outcome, seconds, growth, detail[-4000:]])
        os.write(report, line.encode("ascii") + b"\n")
        os.read(go, 1)


def _watched(
    batch: Sequence[tuple[Kind, int]], child: int, report: int, go: int
) -> Iterator[Verdict]:
    pending = b""
    for kind, number in batch:
        started, begun = time.monotonic(), _processor_seconds(child)
        while True:
            line, newline, rest = pending.partition(b"\n")
            if newline:
                pending = rest
                if line == b"start":
                    started, begun = time.monotonic(), _processor_seconds(child)
                    continue
                outcome, seconds, growth, detail = json.loads(line)
                yield Verdict(kind.name, number, outcome, seconds, growth, detail)
                os.write(go, b".")
                break
            if select.select([report], [], [], 0.5)[0]:
                received = os.read(report, 1 << 16)
                pending += received
                if not received:
                    yield Verdict(kind.name, number, "signal", 0.0, 0, _end(child))
                    return
                continue
            used = _processor_seconds(child) - begun
            if used > SECONDS or time.monotonic() - started > CLOCK_SECONDS:
                os.killpg(child, signal.SIGKILL)
                detail = "killed" if used > SECONDS else WAITS
                yield Verdict(kind.name, number, "hang", used, 0, detail)
                return


def _end(child: int) -> str:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    try:
        _, status = os.waitpid(child, 0)
    except ChildProcessError:
        return ""
    return f"ended by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "ended"


def _processor_seconds(process: int) -> float:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident(*, reset: bool = False) -> int:
    """Highest resident bytes since the last reset; the present ones after one."""
    if reset:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
