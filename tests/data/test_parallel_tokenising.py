"""Several threads tokenise: the same bytes as one, nothing left of a build that ended early."""

from __future__ import annotations

import gzip
import hashlib
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from wuneng.data import encoding
from wuneng.data.encoding import Encoder
from wuneng.data.sources import FileSource
from wuneng.data.token_cache import tokenized
from wuneng.data.tokenizer import train_byte_pair_tokenizer
from wuneng.errors import DataError

Write = Callable[[str, list[str]], Path]


@pytest.fixture
def encoder(stories: list[str]) -> Encoder:
    return Encoder(train_byte_pair_tokenizer(stories, 300, "v"))


def source(*paths: Path) -> FileSource:
    return FileSource([str(path) for path in paths], "data.train", "text", None)


def entry(root: Path) -> dict[str, bytes]:
    """Name and content of every file of the one token cache entry below ``root``."""
    [found] = (root / "tokens").iterdir()
    return {path.name: path.read_bytes() for path in found.iterdir()}


def tokenising() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("tokenising")]


def test_the_cache_is_the_same_whatever_the_number_of_threads(
    tmp_path: Path,
    write_jsonl: Write,
    stories: list[str],
    encoder: Encoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    long = "a line of a long document\n" * 3000
    path = write_jsonl("a.jsonl", [*stories, long, *stories * 9])
    monkeypatch.setattr(encoding, "_PIECE_CHARACTERS", 5000)
    alone = b"".join(tokens.tobytes() for tokens in encoder.encode([*stories, long, *stories * 9]))
    found = []
    for workers in (1, 2, 5):
        tokenized(source(path), encoder, tmp_path / str(workers), workers=workers)
        found.append(entry(tmp_path / str(workers)))
    assert found[0] == found[1] == found[2]
    assert found[0]["tokens.bin"] == alone


def test_two_cores_work_at_the_same_time(
    cache: Path, write_jsonl: Write, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One long document is the work of both: each waits until the other has begun."""
    both = threading.Barrier(2, timeout=30)
    original = encoder.encode_pieces
    calls = iter(range(100))

    def met(pieces: Any) -> Any:
        if next(calls) < 2:
            both.wait()
        return original(pieces)

    monkeypatch.setattr(encoding, "_PIECE_CHARACTERS", 1 << 18)
    monkeypatch.setattr(encoder, "encode_pieces", met)
    text = "of a head is carried over\n" * (4 * (1 << 18) // 26)
    tokenized(source(write_jsonl("a.jsonl", [text])), encoder, cache, workers=2)
    assert not tokenising()


def test_the_tokenizer_works_outside_pythons_lock(encoder: Encoder) -> None:
    """Else threads would take turns. The text takes a good part of a second."""
    text = "of a head is carried over\n" * 40_000
    worker = threading.Thread(target=encoder.encode_pieces, args=([(1, text)],))
    worker.start()
    turns = 0
    while worker.is_alive():
        time.sleep(0.001)
        turns += 1
    assert turns > 20


def test_what_cannot_be_encoded_is_named_with_its_file(
    cache: Path, write_jsonl: Write, stories: list[str], encoder: Encoder
) -> None:
    class Failing:
        def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
            if texts == [stories[7]]:
                raise RuntimeError("what a text")
            return backend.encode_batch_fast(texts, **options)

    backend, encoder._backend = encoder._backend, Failing()
    first, second = write_jsonl("a.jsonl", stories[:5]), write_jsonl("b.jsonl", stories[5:])
    with pytest.raises(
        DataError, match=r"data\.train: .*b\.jsonl, document 3: the tokenizer .* what a text"
    ):
        tokenized(source(first, second), encoder, cache, workers=2)
    assert not list((cache / "tokens").iterdir())
    assert not tokenising()


def test_an_interruption_stops_every_thread_and_leaves_nothing(
    cache: Path, write_jsonl: Write, stories: list[str], encoder: Encoder
) -> None:
    class Interrupted(FileSource):
        def documents(self) -> Iterator[str]:
            yield from stories * 50
            signal.raise_signal(signal.SIGINT)
            yield from stories

    path = write_jsonl("a.jsonl", stories)
    source = Interrupted([str(path)], "data.train", "text", None)
    # A shell's background jobs, as these tests may be, ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            tokenized(source, encoder, cache, workers=2)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not list((cache / "tokens").iterdir())
    assert not tokenising()


def test_a_killed_build_leaves_nothing_that_counts(
    cache: Path, write_jsonl: Write, stories: list[str], encoder: Encoder
) -> None:
    class Endless(FileSource):
        def documents(self) -> Iterator[str]:
            while True:
                yield from stories

    path = write_jsonl("a.jsonl", stories)
    endless = Endless([str(path)], "data.train", "text", None)
    context = multiprocessing.get_context("fork")
    build = context.Process(target=tokenized, args=(endless, encoder, cache), kwargs={"workers": 2})
    build.start()
    _until(lambda: any(f.stat().st_size > 10_000 for f in cache.glob("tokens/*/tokens.bin")))
    os.kill(build.pid or 0, signal.SIGKILL)
    build.join(10)
    assert [left.name[:11] for left in (cache / "tokens").iterdir()] == [".unfinished"]
    corpus = tokenized(source(path), encoder, cache, workers=2)
    assert len(corpus.digests) == len(stories)
    assert len(entry(cache)) == 6  # and what was left is gone


@pytest.mark.parametrize("damage", ["shrinks", "vanishes", "garbage"])
def test_a_file_that_is_damaged_half_way_and_restored(
    cache: Path, write_jsonl: Write, stories: list[str], encoder: Encoder, damage: str
) -> None:
    class Damaged(FileSource):
        def documents(self) -> Iterator[str]:
            for number, text in enumerate(super().documents()):
                yield text
                if number == 30:
                    second = self.files[1]
                    if damage == "vanishes":
                        second.unlink()
                    else:
                        whole = second.read_bytes()
                        second.write_bytes(whole[:700] if damage == "shrinks" else b"\xff" * 700)

    paths = [write_jsonl(name, stories) for name in ("a.jsonl", "b.jsonl")]
    whole = paths[1].read_bytes()
    with pytest.raises(DataError, match=r"b\.jsonl(, line \d+: |: cannot be read)"):
        tokenized(Damaged([str(p) for p in paths], "data.train", "text", None), encoder, cache)
    assert not list((cache / "tokens").iterdir())
    paths[1].write_bytes(whole)
    assert len(tokenized(source(*paths), encoder, cache).digests) == 2 * len(stories)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_how_far_it_is_is_told(cache: Path, tmp_path: Path, encoder: Encoder, suffix: str) -> None:
    paths = [tmp_path / f"{name}{suffix}" for name in "ab"]
    documents = [hashlib.sha512(f"{i}".encode()).hexdigest() * 3 for i in range(2400)]
    for path in paths:
        opened = gzip.open if suffix.endswith("gz") else open
        with opened(path, "wt") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in documents)
    told: list[tuple[str, float]] = []
    tokenized(source(*paths), encoder, cache, workers=2, watch=lambda *facts: told.append(facts))
    shares = [share for _, share in told]
    assert shares[0] < 0.3
    assert shares[-1] == 1
    assert len(set(shares)) > 5
    assert all(first <= second for first, second in pairwise(shares))
    told.clear()
    tokenized(source(*paths), encoder, cache, watch=lambda *facts: told.append(facts))
    assert not told  # it was there


def _until(done: Callable[[], bool]) -> None:
    for _ in range(3000):
        if done():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")
