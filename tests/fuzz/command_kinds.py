"""What only whole commands read: records for a page, task files of one's own, URLs of texts."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any
from unittest import mock

from tests.fuzz.changes import Call, change_bytes, change_json, command, copy, forget_checksums
from tests.fuzz.mutation import mutated_json, mutated_text

if TYPE_CHECKING:
    from tests.fuzz.kinds import Originals

__all__ = ["OwnTasks", "Reports", "Urls"]

#: Pieces of which a mutant gets one or two more lines.
_LINES = (
    "include: task.yaml",
    "include: [nosuch.yaml]",
    "task: [fuzzed_questions, other]",
    "group: fuzzed_questions",
    "class: !function x.y",
    "doc_to_choice: '{{q}}'",
    "doc_to_target: 0",
    "fewshot_split: test",
    "num_fewshot: 3",
    "process_docs: x",
    "output_type: multiple_choice",
    "output_type: loglikelihood_rolling",
    "repeats: 2",
    "filter_list: [{name: x, filter: [{function: take_first}]}]",
    "filter_list: x",
    "metric_list: [{metric: acc, aggregation: x}]",
    "metric_list: []",
    "target_delimiter: 5",
    "description: '{{'",
    "gen_prefix: '{{a}}'",
    "should_decontaminate: true",
    "metadata: x",
    "tag: [a, 1]",
    "training_split: x",
    "dataset_kwargs: x",
    "generation_kwargs: {do_sample: true, temperature: -1}",
    "use_prompt: x",
)
_URLS = (
    *("file://{texts}", "file://{texts}/documents.jsonl", "local://{texts}/documents.txt"),
    *("memory://nothing/x.jsonl", "memory://", "https://127.0.0.1:9/x.jsonl", "http://[::1"),
    *("s3://bucket/key.txt", "gs://bucket/*.txt", "hf://datasets/a/b/c.jsonl", "data:text/plain,a"),
    *("github://o:r@m/x.txt", "zip://x.txt::file://{texts}/documents.txt", "ftp://127.0.0.1/x.txt"),
    *("simplecache::file://{texts}/documents.txt", "reference://x.txt", "dir://x.txt", "://"),
    *("git://{texts}:x@y", "tar://x.txt::memory://y", "blockcache::http://127.0.0.1:9/x.txt"),
)
_PIECES = ("", "/", "//", ":", "::", "@", "#", "?", "%", "%zz", "*", "[", "{", "..", " ", "é")


class Reports:
    """Mutated records of a run, a study or a benchmark, of which a page is made."""

    name = "report"

    def __init__(self, originals: Originals) -> None:
        self.originals = originals

    def case(self, random: Random, directory: Path) -> Call:
        place = directory / "records"
        copy(self.originals.models[random.choice(("run", "study", "bench"))], place)
        records = [
            path
            for path in sorted(place.rglob("*"))
            if path.suffix in (".json", ".jsonl", ".csv", ".yaml") and not path.is_symlink()
        ]
        file = random.choice(records)
        if file.suffix == ".json":
            change_json(random, file)
        else:
            change_bytes(random, file)
        forget_checksums(random, place)
        form = random.choice(("html", "md"))
        return lambda: command("report", "records", "--format", form, "--quiet")


class OwnTasks:
    """Mutated task files, from which questions are put to a tiny model."""

    name = "task"

    def __init__(self, originals: Originals) -> None:
        self.originals = originals

    def case(self, random: Random, directory: Path) -> Call:
        mine = directory / "mine"
        copy(self.originals.place / "tasks", mine)
        file = random.choice(sorted(mine.glob("*.yaml")))
        lines = file.read_text("utf-8").replace("ROWS", str(mine / "rows.jsonl")).split("\n")
        for _ in range(random.choice((0, 1, 1, 2))):
            lines.insert(random.randrange(len(lines)), random.choice(_LINES))
        text = "\n".join(lines)
        text = mutated_text(random, text) if random.random() < 0.7 else text
        (mine / "task.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
        for other in mine.glob("*.yaml"):
            if other.name != "task.yaml":
                other.unlink()
        _change_rows(random, mine / "rows.jsonl")
        model = str(self.originals.models["lm"])
        options = ("--baseline", "none", "--limit", "2", "--device", "cpu", "--quiet")
        where = ("--include-path", "mine", "--out", "out")
        return lambda: command("eval", model, "--tasks", "fuzzed_questions", *where, *options)


class Urls:
    """Mutated URLs of texts. Nothing but this machine is ever asked, and nothing waited for."""

    name = "url"

    def __init__(self, originals: Originals) -> None:
        self.originals = originals

    def case(self, random: Random, directory: Path) -> Call:
        texts = directory / "texts"
        texts.mkdir()
        for file in (self.originals.place / "data").glob("documents.*"):
            shutil.copy(file, texts)
        url = random.choice(_URLS).replace("{texts}", str(texts))
        for _ in range(random.choice((0, 1, 1, 2))):
            at = random.randrange(len(url) + 1)
            url = url[:at] + random.choice(_PIECES) + url[at + random.choice((0, 0, 1, 5)) :]
        return lambda: _documents(url)


def _change_rows(random: Random, file: Path) -> None:
    lines = file.read_text("utf-8").splitlines()
    if random.random() < 0.3:
        at = random.randrange(len(lines))
        lines[at] = json.dumps(mutated_json(random, json.loads(lines[at])))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _documents(url: str) -> None:
    """Some documents from there, as training reads them."""
    from wuneng.data.sources import open_source

    with _nobody_else():
        list(islice(open_source([url], "data.train", "text", 3).documents(), 3))


@contextmanager
def _nobody_else() -> Iterator[None]:
    """No name is looked up but this machine's, and there are no waits between tries."""
    looked_up = socket.getaddrinfo

    def alone(host: Any, *arguments: Any, **named: Any) -> Any:
        if host in ("127.0.0.1", "localhost", "::1"):
            return looked_up(host, *arguments, **named)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with (
        mock.patch("socket.getaddrinfo", alone),
        mock.patch("wuneng.data.remote.WAITS", ()),
        mock.patch("wuneng.hub.connection.WAITS", ()),
        mock.patch("wuneng.data.streamed.WAITS", ()),
    ):
        yield
