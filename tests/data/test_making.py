"""Processes that want the same tokens at the same time: one makes them, whatever happens to it."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from wuneng.data.cache_directory import is_intact
from wuneng.data.encoding import Encoder
from wuneng.data.making import made_once
from wuneng.data.sources import FileSource
from wuneng.data.token_cache import Corpus, tokenized
from wuneng.data.tokenizer import byte_tokenizer
from wuneng.errors import DataError
from wuneng.records.claim import Claim
from wuneng.records.claimant import Claimant
from wuneng.records.user_cache import clear, entries

FORK = multiprocessing.get_context("fork")
ENCODER = Encoder(byte_tokenizer())
#: Of processes that are told apart as those of hosts are; a lease of 0.3 seconds.
HERE, THERE = (Claimant(name, name, beat=0.05, patience=6) for name in ("here", "there"))


class Counting(Encoder):
    """Notes in a file each document that it tokenises, in whatever process."""

    def __init__(self, log: Path) -> None:
        super().__init__(byte_tokenizer())
        self.log = log

    def encode(self, documents: Any) -> Any:
        with self.log.open("a") as file:
            file.write("".join(f"{text!r}\n" for text in documents))
        return super().encode(documents)


class Held(FileSource):
    """Goes on after its first documents only once ``go`` is there."""

    go: Path

    def documents(self) -> Iterator[str]:
        for number, text in enumerate(super().documents()):
            if number == 30:
                until(self.go.exists)
            yield text


def source(path: Path, kind: type[FileSource] = FileSource) -> FileSource:
    return kind([str(path)], "data.train", "text", None)


def until(done: Callable[[], bool]) -> None:
    for _ in range(3000):
        if done():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")


@pytest.fixture
def started() -> Iterator[Callable[..., BaseProcess]]:
    """Starts a process that does not outlive the test."""
    processes: list[BaseProcess] = []

    def start(act: Callable[..., object], *args: object) -> BaseProcess:
        process = FORK.Process(target=act, args=args)
        processes.append(process)
        process.start()
        return process

    yield start
    for process in processes:
        process.kill()
        process.join()


def test_each_document_is_tokenised_once(
    cache: Path, tmp_path: Path, write_jsonl: Any, stories: list[str], started: Any
) -> None:
    """By four processes that all find nothing there, as those of another host do."""
    path, encoder = write_jsonl("a.jsonl", stories), Counting(tmp_path / "log")
    held = source(path, Held)
    held.go = tmp_path / "go"  # type: ignore[attr-defined]
    processes = [started(tokenized, held, encoder, cache) for _ in range(4)]
    until(lambda: bool(list((cache / "claims").glob("*/.claim-*"))))
    time.sleep(0.5)  # for the others to come
    held.go.touch()  # type: ignore[attr-defined]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert Counter(encoder.log.read_text().splitlines()) == Counter(map(repr, stories))
    assert [path.name for path in cache.iterdir()] == ["tokens"]
    corpus = tokenized(source(path), encoder, cache)
    assert isinstance(corpus, Corpus)
    assert len(corpus.digests) == len(stories)


@pytest.mark.parametrize("when", ["reading", "writing"])
def test_one_that_was_killed_is_replaced_by_one_that_waits(
    cache: Path, tmp_path: Path, write_jsonl: Any, stories: list[str], started: Any, when: str
) -> None:
    path, encoder = write_jsonl("a.jsonl", stories * 30), Counting(tmp_path / "log")
    held = source(path, Held)
    held.go = tmp_path / "never"  # type: ignore[attr-defined]
    if when == "writing":
        held.documents = lambda: _then_held(held)  # type: ignore[method-assign]
    first = started(tokenized, held, encoder, cache)
    until(lambda: any(True for _ in cache.glob("tokens/*/tokens.bin")))
    if when == "writing":
        until(lambda: any(f.stat().st_size for f in cache.glob("tokens/*/tokens.bin")))
    waiting = started(tokenized, source(path), encoder, cache)
    time.sleep(0.3)
    assert waiting.is_alive()
    os.kill(first.pid, signal.SIGKILL)
    first.join()  # else it has not ended for who asks
    waiting.join(60)
    assert waiting.exitcode == 0
    assert len(tokenized(source(path), ENCODER, cache).digests) == 30 * len(stories)
    assert [path.name for path in cache.iterdir()] == ["tokens"]
    # Its threads may have held its locks for a moment longer: what it left goes with the next one.
    tokenized(source(write_jsonl("b.jsonl", stories)), ENCODER, cache)
    assert len(list((cache / "tokens").glob("[0-9a-f]*"))) == 2
    assert not list((cache / "tokens").glob(".unfinished-*"))


def _then_held(held: FileSource) -> Iterator[str]:
    yield from FileSource.documents(held)
    until(held.go.exists)  # type: ignore[attr-defined]


def _slowly(entry: Path, claimant: Claimant, log: Path, stop: bool, patience: float = 60) -> None:
    def fill(directory: Path) -> None:
        with log.open("a") as file:
            file.write(f"{claimant.host}\n")
        if stop:
            os.kill(os.getpid(), signal.SIGSTOP)
        (directory / "file").write_text("content")

    made_once(entry, fill, claimant=claimant, patience=patience)


def test_one_of_another_host_that_is_stopped_is_replaced_and_wakes_to_no_harm(
    tmp_path: Path, started: Any
) -> None:
    entry, log = tmp_path / "tokens" / "entry", tmp_path / "log"
    stopped = started(_slowly, entry, THERE, log, True)
    until(log.exists)
    _slowly(entry, HERE, log, False)
    assert log.read_text().split() == ["there", "here"]
    assert is_intact(entry)
    os.kill(stopped.pid, signal.SIGCONT)
    stopped.join(60)
    assert stopped.exitcode == 0
    assert is_intact(entry)
    assert [path.name for path in entry.parent.iterdir()] == ["entry"]
    assert not (tmp_path / "claims").exists()


def test_one_that_lives_but_writes_nothing_is_not_waited_for(
    tmp_path: Path, started: Any, caplog: pytest.LogCaptureFixture
) -> None:
    entry, log = tmp_path / "tokens" / "entry", tmp_path / "log"
    started(made_once, entry, lambda place: (log.touch(), time.sleep(1000)))
    until(log.exists)
    _slowly(entry, HERE, log, False, 0.5)
    assert is_intact(entry)
    assert "which makes it, has written nothing for 0." in caplog.text
    assert ", process " in caplog.text


def test_one_that_writes_is_waited_for(
    tmp_path: Path, started: Any, caplog: pytest.LogCaptureFixture
) -> None:
    entry, log = tmp_path / "tokens" / "entry", tmp_path / "log"

    def fill(place: Path) -> None:
        log.touch()
        with (place / "file").open("w", buffering=1) as file:
            for line in range(20):
                file.write(f"{line}\n")
                time.sleep(0.1)

    started(made_once, entry, fill)
    until(log.exists)
    _slowly(entry, HERE, log, False, 1.0)
    assert (entry / "file").read_text().endswith("19\n")
    assert not log.read_text(), "not made here"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_what_one_finds_wrong_the_other_finds_by_itself(
    cache: Path, tmp_path: Path, started: Any
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' * 40 + "broken\n")
    held = source(path, Held)
    held.go = tmp_path / "go"  # type: ignore[attr-defined]
    started(tokenized, held, ENCODER, cache)
    until(lambda: bool(list((cache / "claims").glob("*/.claim-*"))))
    held.go.touch()  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="line 41"):
        tokenized(source(path), ENCODER, cache)
    until(lambda: not (cache / "claims").exists())


def test_the_claim_of_a_killed_process_is_a_leftover(
    cache: Path, tmp_path: Path, started: Any
) -> None:
    entry, log = cache / "tokens" / ("0123456789" * 4), tmp_path / "log"
    process = started(made_once, entry, lambda place: (log.touch(), time.sleep(1000)))
    until(log.exists)
    assert [found.kind for found in entries(cache)] == [], "it is being made"
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert [found.kind for found in entries(cache)] == ["leftovers", "leftovers"]
    clear(cache)
    assert list(cache.iterdir()) == []


def test_the_claim_of_one_killed_when_it_was_done_goes_too(cache: Path, started: Any) -> None:
    entry = cache / "tokens" / ("0123456789" * 4)

    def done_and_killed() -> None:
        Claim.release = lambda self: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
        made_once(entry, lambda place: (place / "file").touch())

    started(done_and_killed).join()
    place = cache / "claims" / entry.name
    assert [path.name for path in place.iterdir()] == [".claim-1"]
    (place / ".claim-2.0123abcd.partial").touch()
    made_once(entry, lambda place: pytest.fail("it is there"))
    assert [path.name for path in cache.iterdir()] == ["tokens"]


def test_an_empty_directory_of_claims_goes_too(cache: Path) -> None:
    """Of a process killed between its two last steps."""
    entry = cache / "tokens" / ("0123456789" * 4)
    made_once(entry, lambda place: (place / "file").touch())
    (cache / "claims").mkdir()
    made_once(entry, lambda place: pytest.fail("it is there"))
    assert [path.name for path in cache.iterdir()] == ["tokens"]
