"""The token cache: reused when nothing changed, made again when anything did, never half there."""

from __future__ import annotations

import errno
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wuneng.data import cache_directory, prepare_text, token_cache
from wuneng.data.encoding import Encoder
from wuneng.data.sources import FileSource
from wuneng.data.token_cache import Corpus, tokenized
from wuneng.data.tokenizer import byte_tokenizer, train_byte_pair_tokenizer
from wuneng.errors import DataError, DiskError, RunError
from wuneng.records.leftovers import being_written

ENCODER = Encoder(byte_tokenizer())


def source(path: Path, **changes: Any) -> FileSource:
    fields: dict[str, Any] = {"text_field": "text", "max_documents": None, **changes}
    return FileSource([str(path)], "data.train", **fields)


def texts(corpus: Corpus) -> list[str]:
    pieces = np.split(np.asarray(corpus.tokens), corpus.offsets[1:-1])
    return [bytes(piece[1:].astype(np.uint8)).decode("utf-8") for piece in pieces]


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Grows by one whenever a corpus is tokenised."""
    done: list[Path] = []
    original = token_cache._write

    def counted(directory: Path, *rest: Any) -> None:
        done.append(directory)
        original(directory, *rest)

    monkeypatch.setattr(token_cache, "_write", counted)
    return done


def test_tokens_and_byte_counts_are_those_of_the_documents(
    cache: Path, write_jsonl: Callable[[str, list[str]], Path], stories: list[str]
) -> None:
    corpus = tokenized(source(write_jsonl("a.jsonl", stories)), ENCODER, cache)
    assert texts(corpus) == stories
    assert corpus.byte_counts.tolist() == [len(text.encode("utf-8")) for text in stories]
    assert not corpus.corrections.any()
    assert isinstance(corpus.tokens, np.memmap)
    assert corpus.tokens.dtype == np.uint16


def test_odd_characters_are_bytes_like_others(
    cache: Path, write_jsonl: Callable[[str, list[str]], Path]
) -> None:
    odd = ["a\r\nb\x00c\u2028d\ufeffe\x85", "\x00", "\u2028\r\n", "\U0001f600\r"]
    corpus = tokenized(source(write_jsonl("a.jsonl", odd)), ENCODER, cache)
    assert texts(corpus) == odd
    assert corpus.byte_counts.tolist() == [len(text.encode()) for text in odd]


def test_second_time_nothing_is_tokenised(
    cache: Path, writes: list[Path], write_jsonl: Callable[[str, list[str]], Path]
) -> None:
    path = write_jsonl("a.jsonl", ["one", "two"])
    first = tokenized(source(path), ENCODER, cache)
    moved = path.rename(path.with_name("b.jsonl"))
    os.utime(moved, (1, 1))
    second = tokenized(source(moved), ENCODER, cache)
    assert len(writes) == 1
    assert first.key == second.key
    assert texts(second) == ["one", "two"]


def test_an_edit_that_keeps_size_and_times_is_seen(
    cache: Path, writes: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    assert texts(tokenized(source(path), ENCODER, cache)) == ["before"]
    times = path.stat()
    path.write_text("after!")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size
    assert path.stat().st_mtime_ns == times.st_mtime_ns
    assert texts(tokenized(source(path), ENCODER, cache)) == ["after!"]
    assert len(writes) == 2


def test_settings_and_tokenizer_are_part_of_the_key(
    cache: Path, write_jsonl: Callable[[str, list[str]], Path], stories: list[str]
) -> None:
    path = write_jsonl("a.jsonl", stories)
    trained = Encoder(train_byte_pair_tokenizer(stories, 280, "v"))
    corpora = [
        tokenized(source(path), ENCODER, cache),
        tokenized(source(path, max_documents=7), ENCODER, cache),
        tokenized(source(path), trained, cache),
    ]
    assert len({corpus.key for corpus in corpora}) == 3
    assert len(corpora[1].digests) == 7
    assert len(corpora[2].tokens) < len(corpora[0].tokens)


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.npy", "byte_counts.npy", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "altered", "removed"])
def test_a_damaged_entry_is_made_again(
    cache: Path,
    writes: list[Path],
    write_jsonl: Callable[[str, list[str]], Path],
    caplog: pytest.LogCaptureFixture,
    name: str,
    damage: str,
) -> None:
    path = write_jsonl("a.jsonl", ["one", "two"])
    tokenized(source(path), ENCODER, cache)
    (file,) = cache.glob(f"tokens/*/{name}")
    content = file.read_bytes()
    if damage == "removed":
        file.unlink()
    else:
        file.write_bytes(content[:-3] if damage == "cut" else content[:-3] + b"???")
    corpus = tokenized(source(path), ENCODER, cache)
    assert texts(corpus) == ["one", "two"]
    assert len(writes) == 2
    assert "damaged" in caplog.text
    tokenized(source(path), ENCODER, cache)
    assert len(writes) == 2
    assert not list(cache.glob("tokens/.unfinished-*"))


def test_a_build_that_fails_leaves_nothing(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\nbroken\n')
    with pytest.raises(DataError, match="line 2"):
        tokenized(source(path), ENCODER, cache)
    assert not list((cache / "tokens").iterdir())


def test_a_source_that_changes_while_it_is_read(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    original = token_cache._write

    def slow(*arguments: Any) -> None:
        original(*arguments)
        path.write_text("after!")

    monkeypatch.setattr(token_cache, "_write", slow)
    with pytest.raises(DataError, match=r"data\.train: .*a\.txt changed while it was being read"):
        tokenized(source(path), ENCODER, cache)
    assert not list((cache / "tokens").iterdir())


def test_no_text_at_all(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": ""}\n\n')
    with pytest.raises(DataError, match=r"data\.train: no text in .*a\.jsonl"):
        tokenized(source(path), ENCODER, cache)


def test_a_full_disk_is_said(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("text")

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(token_cache, "_write", full)
    with pytest.raises(DiskError, match=r"the disk is full .No space left .*WUNENG_CACHE"):
        tokenized(source(path), ENCODER, cache)
    assert not list((cache / "tokens").iterdir())


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("text")
    with pytest.raises(DiskError, match=r"cannot be written: Not a directory"):
        tokenized(source(path), ENCODER, path / "cache")


def test_what_killed_processes_left_is_removed(cache: Path, tmp_path: Path) -> None:
    left, written = cache / "tokens/.unfinished-left", cache / "tokens/.unfinished-written"
    for directory in (left, written):
        directory.mkdir(parents=True)
    path = tmp_path / "a.txt"
    path.write_text("text")
    with being_written(written):
        tokenized(source(path), ENCODER, cache)
        assert not left.exists()
        assert written.exists()
    tokenized(source(path), ENCODER, cache)
    path.write_text("other text")
    tokenized(source(path), ENCODER, cache)
    assert not written.exists()


def test_processes_that_write_the_same_entry_do_not_disturb_each_other(tmp_path: Path) -> None:
    entry = tmp_path / "tokens" / "entry"
    with multiprocessing.get_context("fork").Pool(4) as pool:
        results = [pool.apply_async(_fill_and_check, (entry,)) for _ in range(40)]
        assert all(result.get(timeout=60) for result in results)
    assert [path.name for path in entry.parent.iterdir()] == ["entry"]


def _fill_and_check(entry: Path) -> bool:
    if not cache_directory.is_intact(entry):
        cache_directory.publish(entry, lambda place: _write_slowly(place / "file"))
    return cache_directory.is_intact(entry)


def _write_slowly(path: Path) -> None:
    with path.open("w") as file:
        for _ in range(100):
            file.write("content" * 100)
            file.flush()


def test_the_place_of_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WUNENG_CACHE", str(tmp_path / "named"))
    assert cache_directory.cache_root("given") == tmp_path / "given"
    assert cache_directory.cache_root(None) == tmp_path / "named"
    monkeypatch.delenv("WUNENG_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory.cache_root(None) == tmp_path / "xdg" / "wuneng"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # counts for nothing, says its specification
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory.cache_root(None) == tmp_path / ".cache" / "wuneng"


@pytest.mark.parametrize("cut", ["shorter", "emptied", "deleted"])
def test_tokens_that_are_cut_while_they_are_in_use(
    settings: Any, write_jsonl: Any, stories: list[str], tmp_path: Path, cut: str
) -> None:
    """Reading beyond a mapped file's end would be a bus error."""
    text = write_jsonl("text.jsonl", stories)
    data = settings.text(train=str(text), cache_dir=str(tmp_path / "cut"))
    given = (data, settings.training(), settings.evaluation(), 0)
    train = prepare_text(*given).train
    before = train.next_batch()
    [file] = (tmp_path / "cut").rglob("tokens.bin")
    if cut == "deleted":
        file.unlink()
        train.next_batch()  # what is mapped stays
    else:
        os.truncate(file, 0 if cut == "emptied" else file.stat().st_size // 2)
        with pytest.raises(RunError, match=r"tokens\.bin: expected .* something has cut the file"):
            train.next_batch()
    again = prepare_text(*given).train.next_batch()
    assert torch.equal(again.input_ids, before.input_ids)
