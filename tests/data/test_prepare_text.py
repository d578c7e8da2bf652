"""A recipe's text settings, from files to batches: order, resuming, splits, byte counts, errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import torch

from wuneng.data import Batch, Prepared, prepare_text
from wuneng.data.text_batches import epoch_order
from wuneng.errors import CheckpointError, DataError

Write = Callable[[str, list[str]], Path]


@pytest.fixture
def prepare(settings: Any) -> Callable[..., Prepared]:
    """prepare(train, seed=0, sequence_length=16, batch_size=4, ...): the rest are data settings."""

    def call(train: Any, *, seed: int = 0, end: dict[str, Any] | None = None, **fields: Any) -> Any:
        run = {
            name: fields.pop(name)
            for name in ("sequence_length", "batch_size", "steps")
            if name in fields
        }
        named = train if isinstance(train, dict | list) else str(train)
        data = settings.text(train=named, **fields)
        return prepare_text(data, settings.training(**run), settings.evaluation(**end or {}), seed)

    return call


def same(first: Batch, second: Batch) -> bool:
    return (
        torch.equal(first.input_ids, second.input_ids)
        and torch.equal(first.labels, second.labels)
        and first.target_bytes == second.target_bytes
    )


@pytest.mark.parametrize("rows", [1, 2, 7, 1000])
def test_an_epoch_is_a_permutation(rows: int) -> None:
    orders = [epoch_order(rows, seed, epoch) for seed in (0, 1, 2**63) for epoch in (0, 1)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(rows))
    if rows == 1000:
        assert len({tuple(order.tolist()) for order in orders}) == len(orders)
        assert abs(np.corrcoef(orders[0], np.arange(rows))[0, 1]) < 0.1


def test_an_epoch_sees_every_row_once(prepare: Any, write_jsonl: Write, stories: list[str]) -> None:
    train = prepare(write_jsonl("a.jsonl", stories), batch_size=1).train
    rows = len(train.rows)
    for _ in range(2):
        seen = [tuple(train.next_batch().input_ids[0].tolist()) for _ in range(rows)]
        whole = train.rows.batch(np.arange(rows)).input_ids.tolist()
        assert sorted(seen) == sorted(map(tuple, whole))


def test_order_follows_the_seed_and_nothing_else(
    prepare: Any, write_jsonl: Write, stories: list[str]
) -> None:
    path = write_jsonl("a.jsonl", stories)
    first, again, other = (prepare(path, seed=seed) for seed in (3, 3, 4))
    pairs = [(first.train.next_batch(), again.train.next_batch()) for _ in range(30)]
    assert all(same(a, b) for a, b in pairs)
    assert not same(pairs[0][0], other.train.next_batch())
    held_out = [[b.input_ids.tolist() for b in p.final.batches()] for p in (first, other)]
    assert held_out[0] == held_out[1]


@pytest.mark.parametrize("stop", [0, 1, 13, 40])
def test_resuming_is_exact(prepare: Any, write_jsonl: Write, stories: list[str], stop: int) -> None:
    path = write_jsonl("a.jsonl", stories[:20])
    undisturbed = prepare(path).train
    expected = [undisturbed.next_batch() for _ in range(60)]  # several epochs
    begun = prepare(path).train
    for _ in range(stop):
        begun.next_batch()
    state = json.loads(json.dumps(begun.state_dict()))
    resumed = prepare(path).train
    resumed.next_batch()
    resumed.load_state_dict(state)
    assert all(same(resumed.next_batch(), batch) for batch in expected[stop:])


def test_a_run_is_not_continued_on_other_text(
    prepare: Any, write_jsonl: Write, stories: list[str]
) -> None:
    state = prepare(write_jsonl("a.jsonl", stories)).train.state_dict()
    changed = prepare(write_jsonl("a.jsonl", stories[1:])).train
    with pytest.raises(CheckpointError, match="training text or its tokenizer has changed"):
        changed.load_state_dict(state)


def test_every_format_gives_the_same_tokens(
    prepare: Any, tmp_path: Path, write_jsonl: Write, stories: list[str]
) -> None:
    parquet.write_table(arrow.table({"text": stories}), tmp_path / "a.parquet")
    for i, text in enumerate(stories):
        path = tmp_path / "files" / f"{i:03}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    sources = [write_jsonl("a.jsonl", stories), tmp_path / "a.parquet", tmp_path / "files"]
    batches = [prepare(source).train.next_batch() for source in sources]
    assert all(same(batch, batches[0]) for batch in batches)


@pytest.mark.parametrize("tokenizer", ["bytes", {"train_bpe": 290}])
@pytest.mark.parametrize("pack_documents", [True, False])
def test_final_validation_counts_every_byte_of_given_files(
    prepare: Any, write_jsonl: Write, stories: list[str], tokenizer: Any, pack_documents: bool
) -> None:
    train, valid = write_jsonl("t.jsonl", stories[10:]), write_jsonl("v.jsonl", stories[:10])
    prepared = prepare(
        train, validation=str(valid), tokenizer=tokenizer, pack_documents=pack_documents
    )
    batches = list(prepared.final.batches())
    assert sum(b.target_bytes for b in batches) == sum(len(t.encode()) for t in stories[:10])
    assert all((b.document_ids is not None) == pack_documents for b in batches)
    assert {(b.task, b.length) for b in batches} == {("text", 16)}
    assert [b.labels.tolist() for b in batches] == [
        b.labels.tolist() for b in prepared.final.batches()
    ]
    assert prepared.vocab_size == (257 if tokenizer == "bytes" else 290)


def test_byte_counts_are_exact_with_a_tokenizer_that_changes_text(
    prepare: Any, write_jsonl: Write, shared_data: Path, stories: list[str]
) -> None:
    train, valid = write_jsonl("t.jsonl", stories[10:]), write_jsonl("v.jsonl", stories[:10])
    tokenizer = str(shared_data / "models" / "tinystories_656k")
    prepared = prepare(train, validation=str(valid), tokenizer=tokenizer)
    counted = sum(b.target_bytes for b in prepared.final.batches())
    assert counted == sum(len(text.encode()) for text in stories[:10])
    assert "does not spell" in prepared.description  # it has no é


def test_watching_is_cheap_and_limits_are_kept(
    prepare: Any, write_jsonl: Write, stories: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wuneng.data.prepare._TOKENS_WATCHED", 100)
    path = write_jsonl("a.jsonl", stories)
    prepared = prepare(path, validation_fraction=0.4)
    assert sum(len(b.input_ids) for b in prepared.validation.batches()) == 100 // 16
    limited = prepare(path, validation_fraction=0.4, end={"max_batches": 2, "batch_size": 3})
    assert [len(b.input_ids) for b in limited.final.batches()] == [3, 3]
    assert sum(len(b.input_ids) for b in prepared.final.batches()) > 100 // 16


def test_one_text_file_is_split_into_head_and_tail(prepare: Any, tmp_path: Path) -> None:
    lines = [f"line {i}\n" for i in range(300)]
    path = tmp_path / "book.txt"
    path.write_text("".join(lines))
    prepared = prepare(path, validation_fraction=0.1)
    decode = prepared.tokenizer.decode
    head = decode(
        prepared.train.rows.batch(np.arange(len(prepared.train.rows))).input_ids.flatten()
    )
    tail = decode(
        prepared.final.rows.batch(np.arange(len(prepared.final.rows))).input_ids.flatten()
    )
    assert (head + tail).replace("<|endoftext|>", "") == "".join(lines)
    assert tail.startswith("line ")
    assert "the end of the only document" in prepared.description


def test_documents_of_validation_are_not_trained_on(
    prepare: Any, write_jsonl: Write, stories: list[str]
) -> None:
    train, valid = write_jsonl("t.jsonl", stories), write_jsonl("v.jsonl", stories[:7])
    prepared = prepare(train, validation=str(valid))
    assert "7 documents are also in validation" in prepared.description
    trained = prepared.train.rows.segments.tokens
    assert trained == sum(1 + len(text.encode()) for text in stories[7:])
    with pytest.raises(DataError, match=r"data\.validation: every training document is also"):
        prepare(valid, validation=str(train))


def test_trained_tokenizer_is_kept_and_never_sees_validation(
    prepare: Any, write_jsonl: Write, stories: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    learned_from: list[list[str]] = []
    from wuneng.data import corpus_tokenizer

    original = corpus_tokenizer.train_byte_pair_tokenizer

    def spy(documents: Any, size: int, field: str) -> Any:
        learned_from.append(list(documents))
        return original(learned_from[-1], size, field)

    monkeypatch.setattr(corpus_tokenizer, "train_byte_pair_tokenizer", spy)
    train, valid = write_jsonl("t.jsonl", stories), write_jsonl("v.jsonl", stories[:7])
    first, second = (
        prepare(train, validation=str(valid), tokenizer={"train_bpe": 280}) for _ in range(2)
    )
    assert learned_from == [stories[7:]]
    assert same(first.train.next_batch(), second.train.next_batch())
    alone = prepare(train, validation_fraction=0.3, tokenizer={"train_bpe": 280})
    assert len(learned_from) == 2
    text = alone.tokenizer.decode(
        alone.final.rows.batch(np.arange(len(alone.final.rows))).input_ids.flatten()
    )
    assert not any(story in text for story in learned_from[1])


def test_another_models_tokenizer_can_be_used(
    settings: Any, write_jsonl: Write, stories: list[str], shared_data: Path
) -> None:
    from wuneng.data.tokenizer import load_tokenizer

    other = load_tokenizer(str(shared_data / "models" / "tinystories_656k"))
    data = settings.text(train=str(write_jsonl("a.jsonl", stories)))
    prepared = prepare_text(data, settings.training(), settings.evaluation(), 0, tokenizer=other)
    assert prepared.tokenizer is other
    assert prepared.vocab_size == 2048


def test_too_short_for_a_sequence(prepare: Any, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("a few\nwords\n" * 4)
    with pytest.raises(
        DataError,
        match=r"data\.train: .*short\.txt has \d+ training tokens, fewer than one sequence of "
        r"training\.sequence_length = 64",
    ):
        prepare(path, sequence_length=64)


def test_bad_lines_reach_the_user(prepare: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n{"body": "x"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: no field 'text'"):
        prepare(path)
    with pytest.raises(DataError, match=r"data\.validation: no file or directory"):
        prepare(path, validation=str(tmp_path / "nothing.txt"))


def test_novels(prepare: Any, shared_data: Path) -> None:
    path = shared_data / "text" / "english_novels_valid.jsonl.gz"
    prepared = prepare(path, sequence_length=512)
    assert "3 documents" in prepared.description
    batch = prepared.train.next_batch()
    assert batch.input_ids.shape == (4, 512)
    assert 3 * 512 <= batch.target_bytes <= 4 * 512  # one row may be the last and shorter one
    assert "the run sees 0.00" in prepared.description


def test_standard_library(prepare: Any) -> None:
    prepared = prepare("stdlib", sequence_length=256, max_documents=80)
    assert "Python standard library" in prepared.description
    assert "def " in prepared.tokenizer.decode(prepared.train.next_batch().input_ids.flatten())
