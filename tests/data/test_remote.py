"""Files behind URLs: every document once a pass, shuffled, resumed exactly, stores that fail."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import fsspec
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from wuneng.data import prepare_text, remote
from wuneng.data.remote import RemoteFiles
from wuneng.errors import DataError, RunError


class Flaky(MemoryFileSystem):
    """Fails ``failures`` times to be opened; each opening gives ``most`` bytes and fails then."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    failures = 0
    most: int | None = None

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode == "rb" and Flaky.failures:
            Flaky.failures -= 1
            raise ConnectionResetError(104, "reset by peer")
        opened = super()._open(path, mode, **options)
        return Cut(opened.getvalue(), Flaky.most) if mode == "rb" and Flaky.most else opened


class Cut(io.BytesIO):
    """Breaks off after ``most`` bytes, which grow at each opening."""

    def __init__(self, content: bytes, most: int) -> None:
        super().__init__(content)
        self._most = most
        Flaky.most = most + 400

    def readline(self, size: int | None = -1) -> bytes:
        if self.tell() > self._most:
            raise TimeoutError("timed out")
        return super().readline(size)


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The seconds that were waited, without waiting."""
    slept: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", slept.append)
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    Flaky.failures, Flaky.most = 0, None
    yield slept
    Flaky.store.clear()
    MemoryFileSystem.store.clear()


def put(path: str, texts: list[str]) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    with fsspec.open(path, "wb") as file:
        if path.endswith(".parquet"):
            parquet.write_table(arrow.table({"text": texts}), file)
        else:
            file.write(gzip.compress(lines) if path.endswith(".gz") else lines)


@pytest.fixture
def shards(stories: list[str]) -> list[str]:
    put("memory://set/0.jsonl", stories[:20])
    put("memory://set/1.jsonl.gz", stories[20:40])
    put("memory://set/2.parquet", stories[40:])
    return stories


def files(*urls: str, seed: int = 0, limit: int | None = None) -> RemoteFiles:
    return RemoteFiles(list(urls), "data.train", "text", limit, seed)


def texts(source: RemoteFiles, position: dict[str, Any]) -> list[str]:
    return [text for text, _ in source.documents_from(position)]


@pytest.mark.parametrize("url", ["memory://set", "memory://set/*.*"])
@pytest.mark.parametrize("block", [7, 1024])
def test_a_pass_has_every_document_once_in_an_order_of_its_own(
    shards: list[str], url: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_BLOCK", block)
    passes = [texts(files(url), {"rows": 0, "pass": turn}) for turn in range(4)]
    assert all(sorted(one) == sorted(shards) for one in passes)
    assert len({tuple(one) for one in passes}) == 4
    assert passes[0] == texts(files(url), {"rows": 0}) != texts(files(url, seed=1), {"rows": 0})
    assert texts(files(url, limit=30), {"rows": 0}) == passes[0][:30]


@pytest.mark.parametrize("block", [7, 1024])
def test_every_position_leads_to_the_rest(
    shards: list[str], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_BLOCK", block)
    whole = list(files("memory://set").documents_from({"rows": 0, "pass": 1}))
    for done, (_, position) in enumerate(whole, start=1):
        rest = texts(files("memory://set"), json.loads(json.dumps(position)))
        assert rest == [text for text, _ in whole[done:]]


def test_training_resumes_exactly_over_passes(
    shards: list[str], settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wuneng.data.streaming._GROUP_DOCUMENTS", 3)

    def train() -> Any:
        data = settings.text(train="memory://set", validation_fraction=0.2)
        return prepare_text(data, settings.training(), settings.evaluation(), 3).train

    undisturbed = train()
    expected = [undisturbed.next_batch() for _ in range(200)]  # some passes
    begun, state = train(), None
    for start in range(0, 160, 40):
        if state is not None:
            begun = train()
            begun.load_state_dict(json.loads(json.dumps(state)))
        for batch in expected[start : start + 40]:
            assert torch.equal(begun.next_batch().input_ids, batch.input_ids)
        state = begun.state_dict()
    assert begun.state_dict()["epoch"] >= 1


def test_a_store_that_fails_now_and_then_is_asked_again(
    stories: list[str], waits: list[float]
) -> None:
    put("flaky://set/a.jsonl", stories)
    expected = texts(files("flaky://set/a.jsonl"), {"rows": 0})
    Flaky.failures = 3
    assert texts(files("flaky://set/a.jsonl"), {"rows": 0}) == expected
    assert waits == [1, 2, 4]
    waits.clear()
    Flaky.most = 300
    assert texts(files("flaky://set/a.jsonl"), {"rows": 0}) == expected
    assert waits.count(1) > 3  # what had been read did not count as failing


def test_a_store_that_stays_away_is_told(stories: list[str], waits: list[float]) -> None:
    put("flaky://set/a.jsonl", stories)
    source = files("flaky://set/a.jsonl")
    Flaky.failures = 99
    with pytest.raises(RunError, match=r"data\.train: flaky://.*a\.jsonl: the store cannot be re"):
        texts(source, {"rows": 0})
    assert waits == [1, 2, 4, 8, 16]
    Flaky.failures = 0
    assert sorted(texts(source, {"rows": 0})) == sorted(stories)


Damage = Callable[[], Any]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda: fsspec.filesystem("memory").rm("/set/0.jsonl"), r"0\.jsonl: cannot be read"),
        (lambda: put_bytes("0.jsonl", b'{"text": "a"}\n\xff\xfe'), r"0\.jsonl, line 2: expected"),
        (lambda: put_bytes("1.jsonl.gz", gzip.compress(b"{}" * 99)[:-12]), "cut gzip file"),
        (lambda: put_bytes("2.parquet", b"garbage"), "not a readable parquet file"),
    ],
)
def test_files_that_vanish_shrink_or_turn_to_garbage(
    shards: list[str], damage: Damage, message: str
) -> None:
    source = files("memory://set")
    damage()
    with pytest.raises(DataError, match=message):
        texts(source, {"rows": 0})


def put_bytes(name: str, content: bytes) -> None:
    with fsspec.open(f"memory://set/{name}", "wb") as file:
        file.write(content)


def test_a_store_that_is_connected_to_at_once_is_asked_again(
    settings: Any, waits: list[float]
) -> None:
    data = settings.text(train="ftp://127.0.0.1:1/a.txt")
    with pytest.raises(RunError, match=r"ftp://.*: the store cannot be reached"):
        prepare_text(data, settings.training(), settings.evaluation(), 0)
    assert waits == [1, 2, 4, 8, 16]


def test_what_cannot_be_opened_at_all(settings: Any) -> None:
    for url, message in (
        ("s3://bucket/a.jsonl", r"data\.train: 's3://.*' needs a package that is missing: .*s3fs"),
        ("nothing://a.jsonl", r"data\.train: 'nothing://a\.jsonl': .*nothing"),
        ("memory://none/a.jsonl", r"data\.train: 'memory://none/a\.jsonl': no file there"),
        ("https://[bad/a.txt", r"data\.train: 'https://\[bad/a\.txt': .*IPv6"),
        (
            "https://127.0.0.1:99999/a.txt",
            r"data\.train: 'https://127.0.0.1:99999/a\.txt': .*[Pp]ort",
        ),
        ("zip://a.txt::none.zip", r"data\.train: zip://a\.txt::none\.zip: cannot be read"),
        ("hf://a", r"data\.train: 'hf://a': "),
    ):
        data = settings.text(train=url)
        with pytest.raises(DataError, match=message):
            prepare_text(data, settings.training(), settings.evaluation(), 0)
    data = settings.text(train=["memory://a.jsonl", "b.txt"])
    with pytest.raises(DataError, match="give each a part of a mixture"):
        prepare_text(data, settings.training(), settings.evaluation(), 0)
