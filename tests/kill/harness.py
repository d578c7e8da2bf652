"""Commands that are killed at their n-th file operation, run again, and compared.

A *scenario* is a command, a directory to start from and what its results are. It is run once
undisturbed, which counts its file operations. Then for an operation: the command is killed there
(or killed half-way through a write, or the disk is full from there on), run again as it is, and
what it leaves must be what the undisturbed command left: the same results, to the bit where they
are figures, and no file more.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]

COUNT, KILL, TORN, FULL = range(4)
#: Seconds that a command may take, which takes two or three: the machine may be busy.
PATIENCE = 180.0
MODES = {"killed": KILL, "killed half-way through a write": TORN, "disk full": FULL}


class Server:
    """Runs commands in forks of one process that has everything imported."""

    def __init__(self, scratch: Path) -> None:
        """Builds the shim and starts the process. OSError without a C compiler."""
        shim = scratch / "shim.so"
        source = str(HERE / "shim.c")
        command = [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-O1", source, "-o", str(shim)]
        try:
            subprocess.run([*command, "-ldl"], check=True, capture_output=True)
        except subprocess.CalledProcessError as error:
            raise OSError(error.stderr.decode("utf-8", "replace")) from None
        (scratch / "tmp").mkdir()
        changes = {
            "LD_PRELOAD": str(shim),
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
            "WUNENG_CACHE": "cache",
            "TMPDIR": str(scratch / "tmp"),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "MPLBACKEND": "agg",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kill.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | changes,
            cwd=REPOSITORY,
        )

    def run(
        self,
        place: Path,
        arguments: list[str],
        mode: int = COUNT,
        at: int = 0,
        page: bool = True,
        patience: float = PATIENCE,
    ) -> Ended:
        """Run ``wuneng`` in ``place``, and let it be disturbed at file operation ``at``.

        Args:
            page: whether it leaves a report.html.
            patience: seconds after which it counts as hung and is ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = {"place": str(place), "arguments": arguments, "mode": mode, "at": at, "page": page}
        asked["patience"] = patience
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        assert line, "the server has ended"
        return Ended(**json.loads(line))

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


@dataclass(frozen=True)
class Ended:
    """How a command ended: see ``server``."""

    status: int
    operations: int
    last: str
    kinds: str
    output: str
    hung: bool = False


@dataclass
class Scenario:
    """A command and the directory it is run in.

    Attributes:
        prepare: fills an empty directory, with commands of its own where need be.
        results: what must be equal afterwards, by name.
        refused: a message with which the command, run again, may refuse since its result is there.
        complete: a file whose presence means that the command had done its work when it was
            disturbed; run again it would begin another piece of work.
        finish: what makes the files anew that the command writes after that one.
        page: whether the page at the end is killed as well: dear, and everywhere the same.
    """

    name: str
    arguments: list[str]
    prepare: Callable[[Server, Path], None]
    results: Callable[[Path], dict[str, Any]]
    refused: str = ""
    complete: str = ""
    finish: tuple[str, ...] = ()
    page: bool = True
    start: Path | None = None
    expected: dict[str, Any] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    operations: int = 0
    kinds: str = ""

    def measure(self, server: Server, scratch: Path) -> None:
        """Run it undisturbed: what it leaves, and how many file operations it takes."""
        self.start = scratch / f"{self.name}-start"
        self.start.mkdir()
        self.prepare(server, self.start)
        with self.copy(scratch) as place:
            ended = self._run(server, place)
            assert ended.status == 0, f"{self.name}: {ended.output}"
            self.operations, self.kinds = ended.operations, ended.kinds
            self.expected, self.files = self.results(place), _files(place)

    def disturb(
        self, server: Server, scratch: Path, mode: int, at: int, then: int = 0
    ) -> str | None:
        """Disturb it at operation ``at`` and run it again; what is wrong then, or None.

        Args:
            then: kill it a second time, at this operation of the second attempt; 0: do not.
        """
        with self.copy(scratch) as place:
            first = self._run(server, place, mode, at)
            wrong = self._ended_as_it_should(first, mode)
            if then and not self._is_complete(place):
                second = self._run(server, place, KILL, then)
                wrong = wrong or self._ended_as_it_should(second, KILL)
            again = Ended(0, 0, "", "", "")
            if not self._is_complete(place):
                again = self._run(server, place)
            elif self.finish:
                again = server.run(place, list(self.finish))
            if wrong is None:
                wrong = self._completed(place, again)
            return wrong and f"{self.name}, {first.last} {at}: {wrong}"

    def _run(self, server: Server, place: Path, mode: int = COUNT, at: int = 0) -> Ended:
        return server.run(place, self.arguments, mode, at, self.page)

    def _is_complete(self, place: Path) -> bool:
        return bool(self.complete) and (place / self.complete).exists()

    def _ended_as_it_should(self, first: Ended, mode: int) -> str | None:
        if first.hung:
            return f"it did not end: {first.output[-3000:]}"
        if "Traceback" in first.output:
            return f"a traceback: {first.output[-3000:]}"
        if mode == FULL and first.status not in (0, 1):
            return f"exit {first.status} where the disk is full: {first.output[-1000:]}"
        if mode == FULL and first.status == 1 and "disk is full" not in first.output:
            return f"does not say that the disk is full: {first.output[-1000:]}"
        return None

    def _completed(self, place: Path, again: Ended) -> str | None:
        if again.hung:
            return f"run again, it did not end: {again.output[-3000:]}"
        refused = bool(self.refused) and again.status == 2 and self.refused in again.output
        if again.status != 0 and not refused:
            return f"run again, it ends with {again.status}: {again.output[-3000:]}"
        try:
            found, files = self.results(place), _files(place)
        except (OSError, ValueError) as error:
            return f"its results cannot be read: {error!r}"
        different = [name for name in self.expected if found.get(name) != self.expected[name]]
        if different:
            return f"other results: {', '.join(different)}"
        more, fewer = sorted(files - self.files), sorted(self.files - files)
        return f"files left: {more}; missing: {fewer}" if more or fewer else None

    @contextmanager
    def copy(self, scratch: Path) -> Iterator[Path]:
        """A copy of where the command starts from, for one attempt."""
        place = scratch / "place"
        assert self.start is not None
        shutil.copytree(self.start, place, symlinks=True)
        try:
            yield place
        finally:
            shutil.rmtree(place)


def _files(place: Path) -> set[str]:
    """All names below ``place``; of a cache entry its directory alone says which it is."""
    return {str(path.relative_to(place)) for path in place.rglob("*")}
