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

import yaml

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]

COUNT, KILL, TORN, FULL = range(4)
MODES = {"killed": KILL, "killed half-way through a write": TORN, "disk full": FULL}

RECIPE = """
name: tiny
model: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 1, num_state_heads: 1,
        attention_dropout: 0.1}
arms: [wuneng]
data: {kind: text, train: text.txt, tokenizer: bytes, validation_fraction: 0.3}
training: {steps: 3, sequence_length: 16, batch_size: 2, micro_batch_size: 1, num_threads: 1,
           log_every: 1, validate_every: 2, checkpoint_every: 1, keep_checkpoints: 1,
           warmup_steps: 1}
device: cpu
"""
#: Of metrics, records and results: what depends on the clock, not on the computation.
_TIMES = ("seconds", "tokens_per_second", "data_wait", "peak_memory_bytes", "environment")


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
            "WUNENG_REPORT": "1",  # the page is killed as well
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kill.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | changes,
            cwd=REPOSITORY,
        )

    def run(self, place: Path, arguments: list[str], mode: int = COUNT, at: int = 0) -> Ended:
        """Run ``wuneng`` in ``place``, and let it be disturbed at file operation ``at``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = {"place": str(place), "arguments": arguments, "mode": mode, "at": at}
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
    """

    name: str
    arguments: list[str]
    prepare: Callable[[Server, Path], None]
    results: Callable[[Path], dict[str, Any]]
    refused: str = ""
    complete: str = ""
    finish: tuple[str, ...] = ()
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
            ended = server.run(place, self.arguments)
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
            first = server.run(place, self.arguments, mode, at)
            wrong = self._ended_as_it_should(first, mode)
            if then and not self._is_complete(place):
                second = server.run(place, self.arguments, KILL, then)
                wrong = wrong or self._ended_as_it_should(second, KILL)
            again = Ended(0, 0, "", "", "")
            if not self._is_complete(place):
                again = server.run(place, self.arguments)
            elif self.finish:
                again = server.run(place, list(self.finish))
            if wrong is None:
                wrong = self._completed(place, again)
            return wrong and f"{self.name}, {first.last} {at}: {wrong}"

    def _is_complete(self, place: Path) -> bool:
        return bool(self.complete) and (place / self.complete).exists()

    def _ended_as_it_should(self, first: Ended, mode: int) -> str | None:
        if "Traceback" in first.output:
            return f"a traceback: {first.output[-3000:]}"
        if mode == FULL and first.status not in (0, 1):
            return f"exit {first.status} where the disk is full: {first.output[-1000:]}"
        if mode == FULL and first.status == 1 and "disk is full" not in first.output:
            return f"does not say that the disk is full: {first.output[-1000:]}"
        return None

    def _completed(self, place: Path, again: Ended) -> str | None:
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


def scenarios() -> list[Scenario]:
    """Every command that writes, from its beginning and in the middle of its work."""
    train = ["train", "tiny.yaml", "-q"]
    longer = [*train, "--set", "training.steps=4", "--resume", "runs/tiny"]
    evaluate = ["eval", "runs/tiny", "--tasks", "validation", "--out", "scores", "-q"]
    convert = ["convert", "runs/tiny", "exported/model", "--to", "transformers", "--stock", "-q"]
    bench = [
        *("bench", "--model", "runs/tiny", "--what", "decode", "--seq-len", "16,32"),
        *("--against", "none", "--seconds", "0.1", "--out", "speed", "-q"),
    ]
    graft = ["convert", "base", "exported/model", "--state-heads", "1", "-q"]
    sharded = ["convert", "runs/tiny", "exported/model", "--to", "dcp", "-q"]
    exists = "exists already"
    done, page = "runs/tiny/results.json", ("report", "runs/tiny", "-q")
    return [
        Scenario("train", train, _recipe, run_results, complete=done, finish=page),
        Scenario("train --out", [*train, "--out", "here/run"], _recipe, run_results),
        Scenario("resume", train, _stopped, run_results, complete=done, finish=page),
        Scenario("train of a finished run", [*train, "--resume", "runs/tiny"], _run, run_results),
        Scenario("train longer", longer, _constant_run, run_results),
        Scenario("eval", evaluate, _run, _scores),
        Scenario("convert", convert, _plain_run, _exported, refused=exists),
        Scenario("convert of a base", graft, _base, _exported, refused=exists),
        Scenario("convert to dcp", sharded, _run, _exported_shards, refused=exists),
        Scenario("upgrade", train, _upgrade, run_results, complete=done, finish=page),
        Scenario("bench", bench, _run, _speed),
        Scenario("report", list(page), _run, run_results),
        Scenario("cache clear", ["cache", "clear"], _run, lambda place: {}),
    ]


def _recipe(server: Server, place: Path, text: str = RECIPE) -> None:
    (place / "tiny.yaml").write_text(text, encoding="utf-8")
    lines = [f"The {i}th line tells of {i * i} owls and {i % 7} bees.\n" for i in range(40)]
    (place / "text.txt").write_text("".join(lines), encoding="utf-8")


def _run(server: Server, place: Path, text: str = RECIPE) -> None:
    _recipe(server, place, text)
    ended = server.run(place, ["train", "tiny.yaml", "-q"])
    assert ended.status == 0, ended.output


def _constant_run(server: Server, place: Path) -> None:
    """One whose schedule lets it be trained for longer."""
    _run(server, place, RECIPE.replace("warmup_steps: 1", "warmup_steps: 1, schedule: constant"))


def _plain_run(server: Server, place: Path) -> None:
    _run(server, place, RECIPE.replace("num_state_heads: 1", "num_state_heads: 0"))


def _base(server: Server, place: Path) -> None:
    """A plain Transformer, as others would hand it over, and no run."""
    _plain_run(server, place)
    command = ["convert", "runs/tiny", "base", "--to", "transformers", "--stock", "-q"]
    ended = server.run(place, command)
    assert ended.status == 0, ended.output
    for left in ("runs", "cache"):
        shutil.rmtree(place / left)


def _upgrade(server: Server, place: Path) -> None:
    """A recipe that starts from such a Transformer."""
    _base(server, place)
    settings = yaml.safe_load(RECIPE)
    new = {"num_state_heads": 1, "cross_head": "gated"}
    settings |= {"init_from": "base", "train": "new", "model": new}
    del settings["data"]["tokenizer"]
    (place / "tiny.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")


def _stopped(server: Server, place: Path) -> None:
    """A run killed after its second checkpoint, in the middle of its third."""
    _recipe(server, place)
    total = server.run(place, ["train", "tiny.yaml", "-q"]).operations
    for at in range(total // 3, total, 6):
        for left in ("runs", "cache"):
            shutil.rmtree(place / left, ignore_errors=True)
        server.run(place, ["train", "tiny.yaml", "-q"], KILL, at)
        if list((place / "runs/tiny/wuneng/checkpoints").glob(".partial-step-3.*")):
            return
    raise AssertionError("never stopped in its third checkpoint")


def run_results(place: Path) -> dict[str, Any]:
    """What a finished run says, less what the clock says."""
    [run] = {path.resolve().parent for path in place.glob("*/*/results.json")}
    arm = run / "wuneng"
    steps = (arm / "checkpoints").glob("step-*")
    last = max(steps, key=lambda path: int(path.name.removeprefix("step-")))
    metrics = (arm / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "weights": (arm / "model" / "model.safetensors").read_bytes(),
        "step": last.name,
        "checkpoint": (last / "model.safetensors").read_bytes(),
        "moments": (last / "optimizer.safetensors").read_bytes(),
        "rows": (arm / "rows.json").read_bytes(),
        "metrics": [_timeless(json.loads(line)) for line in metrics],
        "record": _timeless(json.loads((arm / "result.json").read_bytes())),
        "results": _timeless(json.loads((run / "results.json").read_bytes())),
        "recipe": (run / "recipe.yaml").read_bytes(),
    }


def _scores(place: Path) -> dict[str, Any]:
    return {"eval.json": _timeless(json.loads((place / "scores/eval.json").read_bytes()))}


def _exported(place: Path) -> dict[str, Any]:
    directory = place / "exported" / "model"
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def _exported_shards(place: Path) -> dict[str, Any]:
    """Of its metadata what it says of tensors: it also has an id, which is another every time."""
    from torch.distributed.checkpoint import FileSystemReader

    found = _exported(place)
    del found[".metadata"], found["checksums.json"]
    metadata = FileSystemReader(place / "exported" / "model").read_metadata()
    return found | {"tensors": str(metadata.state_dict_metadata)}


def _speed(place: Path) -> dict[str, Any]:
    record = json.loads((place / "speed/bench.json").read_bytes())
    return {"cases": [(row["what"], row["seq_len"], row["status"]) for row in record["rows"]]}


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(item) for name, item in value.items() if name not in _TIMES}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def _files(place: Path) -> set[str]:
    """All names below ``place``; of a cache entry its directory alone says which it is."""
    return {str(path.relative_to(place)) for path in place.rglob("*")}
