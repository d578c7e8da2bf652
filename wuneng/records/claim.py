"""Claims on directories, among processes of several hosts that share a file system.

``directory/.claim-<n>`` says who has the directory: the highest number counts. It is made so that
one process alone can make it (O_EXCL, which network file systems keep), and its holder changes it
every few seconds. A claim is free to be taken, by making the next number, when its file is gone;
when its holder was a process of this machine that does not run any more; or when it has not changed
for a *lease*. That is watched, so that no two clocks are compared, and time in which the watcher
itself stood still, or its disk did, does not count.

A holder that was stopped for longer than a lease finds the higher number before its next write
(``Claim.check``). Whoever takes a claim over for its silence waits until nothing that was checked
before can still be under way.

The operating system's locks (``lock``) are not enough: some file systems have none, some keep them
to one host, and some keep them for a process that is stopped for good.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from wuneng.errors import RunError
from wuneng.records.claimant import Claimant, Holder
from wuneng.records.fence import fenced
from wuneng.records.files import disk_errors, open_no_link
from wuneng.records.leftovers import lock, remove_abandoned

__all__ = ["CLAIM", "Claim", "ClaimLost", "Vacancy", "Watch", "claimed", "remove_ended"]

#: How the names of claims begin.
CLAIM = ".claim-"
#: Beats for which a claim that was looked at counts as held; after that it is looked at again.
_TRUSTED = 2
#: Beats that whoever takes over from a silent process waits: more than it may trust its claim.
_SETTLING = 3
#: Names under which claims are made before they count.
_HALF_MADE = re.compile(re.escape(CLAIM) + r"\d{1,9}\.[0-9a-f]+\.partial")
_BETWEEN_LOOKS = 0.1
_WORTH_TELLING = 2.0
"""Seconds."""


class ClaimLost(RunError):
    """Another process has taken over what this one had claimed."""


def _clock() -> float:
    """Seconds that also pass while this process, or the machine, is asleep."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class Claim:
    """A directory that this process has, until it is released or lost."""

    def __init__(
        self, path: Path, descriptor: int, claimant: Claimant, made: Sequence[Path]
    ) -> None:
        self.directory, self._made = path.parent, made
        self._path, self._descriptor, self._claimant = path, descriptor, claimant
        self._beats = 0
        self._is_lost = False
        self._mutex = threading.Lock()
        self._renewed = _clock()
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="claim", daemon=True)
        self._thread.start()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """In the block nothing is written by this process without :meth:`check`; at its end the
        claim is released."""
        try:
            with fenced(secrets.token_hex(4), self.check):
                yield
        finally:
            self.release()

    @property
    def is_lost(self) -> bool:
        """Whether another process has it now."""
        with suppress(ClaimLost, OSError):
            self._renew()
        return self._is_lost

    def check(self) -> None:
        """Raise ClaimLost where another process has taken over; cheap where that cannot be."""
        if self._is_lost or _clock() - self._renewed > _TRUSTED * self._claimant.beat:
            with disk_errors(self._path):
                self._renew()

    def release(self) -> None:
        """Let others have it. A directory that was made for the claim, and is empty, goes too."""
        self._released.set()
        self._thread.join()
        with self._mutex, suppress(OSError):
            if os.path.samestat(os.fstat(self._descriptor), self._path.lstat()):
                self._path.unlink()
            for directory in self._made:
                directory.rmdir()
        os.close(self._descriptor)

    def _keep(self) -> None:
        while not self._released.wait(self._claimant.beat):
            try:
                self._renew()
            except ClaimLost:
                return
            except OSError:  # of a disk that may come back: ``check`` tells of it
                continue

    def _renew(self) -> None:
        with self._mutex:
            began = _clock()
            try:
                if not self._is_lost and self._is_ours():
                    self._beats += 1
                    os.pwrite(self._descriptor, self._claimant.told(self._beats), 0)
                    os.fsync(self._descriptor)
                    self._renewed = began
                    return
            except OSError as error:
                if error.errno not in (errno.ESTALE, errno.ENOENT):
                    raise
            self._is_lost = True
            raise ClaimLost(
                f"{self.directory}: another process has taken over, as this one showed no sign of "
                f"life for {self._claimant.lease:g} seconds"
            )

    def _is_ours(self) -> bool:
        """Whether the file is where it was, and no higher one beside it."""
        own = _number_of(self._path.name)
        if max(_numbers(self.directory), default=-1) != own:
            return False
        return os.path.samestat(os.fstat(self._descriptor), self._path.lstat())


@dataclass(frozen=True)
class Vacancy:
    """A directory that nobody has, as far as was seen; may be given to another process."""

    directory: Path
    found: tuple[int, bytes] | None = None
    """The claim that does not hold any more: its number, and what it says."""
    settling: float = 0.0
    """Seconds to wait for what its holder may be about to write."""

    def claim(self, claimant: Claimant) -> Claim | None:
        """Claim it; None where another process was faster. DiskError where the disk refuses."""
        own = self.directory / f"{CLAIM}{1 if self.found is None else self.found[0] + 1}"
        made = [path for path in (self.directory, self.directory.parent) if not path.exists()]
        with disk_errors(own):
            self.directory.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = _made(own, claimant.told(0))
            except (FileExistsError, FileNotFoundError):  # the directory went with its last claim
                return None
        claim = Claim(own, descriptor, claimant, made)
        # Of two that have each made one, at least one sees the other's.
        others = {number: _read(self.directory, number) for number in _numbers(self.directory)}
        others.pop(_number_of(own.name) or 0, None)
        known = {} if self.found is None else dict([self.found])
        # Lower ones do not hold: whoever made the one that was found was killed before they went.
        rivals = {
            number: told for number, told in others.items() if number >= min(known, default=0)
        }
        if self.settling:
            time.sleep(self.settling)
        if (rivals and rivals != known) or claim.is_lost:
            claim.release()
            return None
        for number in others:
            (self.directory / f"{CLAIM}{number}").unlink(missing_ok=True)
        with suppress(OSError):  # of one killed while it made its claim: in nobody's way
            remove_abandoned(self.directory, _HALF_MADE)
        return claim


class Watch:
    """Looks at who has ``directory``, as often as it is asked."""

    def __init__(self, directory: Path, claimant: Claimant) -> None:
        self.directory, self._claimant = directory, claimant
        self._found: tuple[int, bytes] | None = None
        self._silent, self._looked = 0.0, _clock()

    @property
    def last_holder(self) -> str:
        """Who had it when it was last looked at, in words."""
        return "" if self._found is None else str(Holder.read(self._found[1], self._claimant))

    def look(self) -> Holder | Vacancy:
        """Who has it, or that it may be claimed."""
        number = max(_numbers(self.directory), default=None)
        found = None if number is None else (number, _read(self.directory, number))
        now = _clock()
        if found != self._found:
            self._found, self._silent = found, 0.0
        else:  # a watcher that itself stood still has not seen that nothing changed
            self._silent += min(now - self._looked, _TRUSTED * self._claimant.beat)
        self._looked = now
        if found is None:
            return Vacancy(self.directory)
        holder = Holder.read(found[1], self._claimant)
        if holder.has_ended(self._claimant):
            return Vacancy(self.directory, found, self._settling_below(found[0]))
        if self._silent > holder.lease:
            settling = max(_SETTLING * holder.beat, self._settling_below(found[0]))
            return Vacancy(self.directory, found, settling)
        return holder

    def _settling_below(self, number: int) -> float:
        """Seconds that whoever made claim ``number`` was to wait for lower ones, and may not have:
        a holder that was taken for dead may be about to write still."""
        lower = [_read(self.directory, n) for n in _numbers(self.directory) if n < number]
        holders = [Holder.read(told, self._claimant) for told in lower]
        running = [holder for holder in holders if not holder.has_ended(self._claimant)]
        return max((_SETTLING * holder.beat for holder in running), default=0.0)


def remove_ended(directory: Path) -> None:
    """Delete what a process of this machine left that was killed after it had finished here."""
    found = Watch(directory, Claimant()).look()
    if isinstance(found, Vacancy) and found.found is not None:
        for number in _numbers(
            directory
        ):  # lower ones stay behind where it was killed as it claimed
            if number <= found.found[0]:
                (directory / f"{CLAIM}{number}").unlink(missing_ok=True)


def _made(path: Path, content: bytes) -> int:
    """A new file that has its content from the first moment, open; OSError where there is one."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}.partial")
    descriptor = open_no_link(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        lock(descriptor)  # it is no leftover
        os.pwrite(descriptor, content, 0)
        os.fsync(descriptor)
        try:
            os.link(partial, path)
        except FileExistsError:
            # A network file system may have linked it and asked once more.
            if not os.path.samestat(os.fstat(descriptor), path.lstat()):
                raise
        except OSError:  # no such links here
            os.close(descriptor)
            descriptor = open_no_link(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            os.pwrite(descriptor, content, 0)
    except BaseException:
        with suppress(OSError):
            os.close(descriptor)
        raise
    finally:
        with suppress(OSError):
            partial.unlink()
    return descriptor


def _read(directory: Path, number: int) -> bytes:
    try:
        return (directory / f"{CLAIM}{number}").read_bytes()
    except OSError:
        return b""


def _numbers(directory: Path) -> list[int]:
    """Of the claims that there are; opening the directory makes network file systems look anew."""
    try:
        return [n for name in os.listdir(directory) if (n := _number_of(name)) is not None]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _number_of(name: str) -> int | None:
    """The number of a claim's file; None for other names."""
    found = re.fullmatch(re.escape(CLAIM) + r"(\d{1,9})", name)
    return None if found is None else int(found[1])


@contextmanager
def claimed(directory: Path, claimant: Claimant, note: Callable[[str], None]) -> Iterator[Claim]:
    """``directory`` for a moment: waits for whoever has it.

    Args:
        note: told whom this process waits for, once.
    """
    watch, told = Watch(directory, claimant), False
    began = time.monotonic()
    while True:
        found = watch.look()
        claim = found.claim(claimant) if isinstance(found, Vacancy) else None
        if claim is not None:
            break
        waited = time.monotonic() - began
        if isinstance(found, Holder) and not told and waited > _WORTH_TELLING:
            note(f"waiting for {found}, which has {directory}")
            told = True
        time.sleep(min(_BETWEEN_LOOKS, claimant.beat))
    with claim.kept():
        yield claim
