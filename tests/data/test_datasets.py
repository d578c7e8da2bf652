"""Data sets read through `datasets`: stored and streamed, from local files in the same formats."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import torch
from huggingface_hub import constants
from pydantic import ValidationError

from wuneng.data import Batch, Prepared, prepare_text
from wuneng.data.sources import open_source
from wuneng.data.streamed import StreamedDataset
from wuneng.errors import CheckpointError, DataError, RunError

Write = Callable[[str, list[str]], Path]


@pytest.fixture(params=["jsonl", "parquet"])
def directory(request: Any, tmp_path: Path, stories: list[str]) -> Path:
    """A data set of three train files and one of validation, in a local directory."""
    root = tmp_path / "set"
    root.mkdir()
    parts = {f"train-0000{i}": stories[18 * i : 18 * i + 18] for i in range(3)}
    for name, texts in {**parts, "validation-00000": stories[54:]}.items():
        if request.param == "parquet":
            table = arrow.table({"text": texts, "id": range(len(texts))})
            parquet.write_table(table, root / f"{name}.parquet", row_group_size=5)
        else:
            lines = (json.dumps({"text": text, "id": i}) for i, text in enumerate(texts))
            (root / f"{name}.jsonl").write_text("\n".join(lines))
    return root


@pytest.fixture
def prepare(settings: Any) -> Callable[..., Prepared]:
    def call(train: dict[str, Any], *, batch_size: int = 4, **fields: Any) -> Prepared:
        data = settings.text(train=train, **fields)
        return prepare_text(
            data, settings.training(batch_size=batch_size), settings.evaluation(), seed=0
        )

    return call


def equal(first: Batch, second: Batch) -> bool:
    assert first.document_ids is not None
    assert second.document_ids is not None
    return (
        torch.equal(first.input_ids, second.input_ids)
        and torch.equal(first.labels, second.labels)
        and torch.equal(first.document_ids, second.document_ids)
        and first.target_bytes == second.target_bytes
    )


def test_stored_data_set_equals_its_files(
    prepare: Any, directory: Path, write_jsonl: Write, stories: list[str]
) -> None:
    stored = prepare({"dataset": str(directory)})
    path = write_jsonl("same.jsonl", stories[:54])
    files = prepare([str(path)])
    assert all(equal(stored.train.next_batch(), files.train.next_batch()) for _ in range(9))
    assert "split train" in stored.description


def test_splits_and_validation_by_name(prepare: Any, directory: Path, stories: list[str]) -> None:
    prepared = prepare(
        {"dataset": str(directory)},
        validation={"dataset": str(directory), "split": "validation"},
    )
    counted = sum(batch.target_bytes for batch in prepared.final.batches())
    assert counted == sum(len(text.encode()) for text in stories[54:])


def test_an_edited_data_set_is_tokenised_again(
    prepare: Any, tmp_path: Path, stories: list[str]
) -> None:
    (tmp_path / "set").mkdir()
    path = tmp_path / "set" / "train.jsonl"
    keys = []
    for texts in (stories, stories[::-1]):
        path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
        keys.append(prepare({"dataset": str(tmp_path / "set")}).train.state_dict()["corpus"])
    assert keys[0] != keys[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"text_field": "txt"},
            r"no field 'txt'; the fields are 'text', 'id'\. Did you mean 'text",
        ),
        ({"text_field": "id"}, r"row 1: field 'id' should be text, got int 0"),
        (
            {"split": "valid"},
            r"data\.train: data set '.*set' \(config None, split 'valid'\) cannot",
        ),
        ({"dataset": "no/such"}, r"data\.train: data set 'no/such' is not in the local cache"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_errors(
    prepare: Any, directory: Path, changes: dict[str, str], message: str, streaming: bool
) -> None:
    with pytest.raises(DataError, match=message):
        prepare({"dataset": str(directory), "streaming": streaming, **changes}).train.next_batch()


def test_stream_has_every_training_document_in_order(
    prepare: Any, directory: Path, stories: list[str]
) -> None:
    prepared = prepare(
        {"dataset": str(directory), "streaming": True}, validation_fraction=0.2, batch_size=1
    )
    rows = torch.cat([batch.input_ids.flatten() for batch in prepared.final.batches()])
    scored = set(prepared.tokenizer.decode(rows).split("<|endoftext|>")) - {""}
    assert scored
    assert scored < set(stories)
    kept = [text for text in stories[:54] if text not in scored]
    tokens = [token for text in kept for token in (256, *text.encode())]
    train = prepared.train
    seen: list[int] = []
    while len(seen) < 2.5 * len(tokens):  # into the third pass
        seen += train.next_batch().input_ids.flatten().tolist()
    assert seen == (tokens * 3)[: len(seen)]


def test_stream_packs_as_stored_text_does(
    prepare: Any, directory: Path, write_jsonl: Write, stories: list[str]
) -> None:
    valid = str(write_jsonl("v.jsonl", ["something else"]))
    streamed = prepare({"dataset": str(directory), "streaming": True}, validation=valid).train
    stored = prepare({"dataset": str(directory)}, validation=valid).train.rows
    count = len(stored) // 4
    for i in range(count):
        expected = stored.batch(torch.arange(4 * i, 4 * i + 4).numpy())
        assert equal(streamed.next_batch(), expected)


@pytest.mark.parametrize(("group", "block"), [(1, 1), (3, 1), (64, 1), (3, 7), (64, 20)])
def test_resuming_a_stream_again_and_again_is_exact(
    prepare: Any, directory: Path, monkeypatch: pytest.MonkeyPatch, group: int, block: int
) -> None:
    monkeypatch.setattr("wuneng.data.streaming._GROUP_DOCUMENTS", group)
    source = {"dataset": str(directory), "streaming": True, "shuffle_block": block}
    undisturbed = prepare(source).train
    expected = [undisturbed.next_batch() for _ in range(200)]  # some passes
    state = prepare(source).train.state_dict()
    for start in range(0, 200, 23):
        resumed = prepare(source).train
        resumed.load_state_dict(json.loads(json.dumps(state)))
        for batch in expected[start : start + 23]:
            assert equal(resumed.next_batch(), batch)
        state = resumed.state_dict()


def test_a_stream_is_shuffled_in_blocks_anew_in_every_pass(
    settings: Any, directory: Path, stories: list[str]
) -> None:
    data = {"dataset": str(directory), "streaming": True, "shuffle_block": 20}
    source = open_source(settings.text(train=data).train, "data.train", "text", None, seed=3)
    assert isinstance(source, StreamedDataset)
    passes = [list(source.documents_from({"rows": 0, "pass": turn})) for turn in (0, 1)]
    orders = [[text for text, _ in one] for one in passes]
    assert orders[0] != orders[1]
    for order in orders:
        assert order != stories[:54]
        for start in range(0, 54, 20):
            assert sorted(order[start : start + 20]) == sorted(stories[:54][start : start + 20])
    for number in (1, 19, 20, 21, 40, 53):
        behind = json.loads(json.dumps(passes[1][number - 1][1]))
        assert [text for text, _ in source.documents_from(behind)] == orders[1][number:]


def test_what_is_stored_has_no_blocks(settings: Any, directory: Path) -> None:
    with pytest.raises(ValidationError, match="shuffle_block 1 without streaming"):
        settings.text(train={"dataset": str(directory), "shuffle_block": 20})


class Busy(Exception):
    """As the hub's client has it."""

    response = SimpleNamespace(status_code=503)


@pytest.mark.parametrize(
    "failure",
    [ConnectionError("no route"), TimeoutError("too long"), Busy("try again later")],
)
def test_a_hub_that_does_not_answer_is_asked_again(
    prepare: Any, directory: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    load, failures, waits = datasets.load_dataset, [3], []

    def flaky(*args: Any, **named: Any) -> Any:
        failures[0] -= 1
        if failures[0] >= 0:
            raise failure
        return load(*args, **named)

    monkeypatch.setattr(datasets, "load_dataset", flaky)
    for told in (datasets.config, constants):
        monkeypatch.setattr(told, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("wuneng.hub.connection.time.sleep", waits.append)
    prepare({"dataset": str(directory)})
    assert waits == [1, 2, 4]
    failures[0], waits[:] = 99, []
    with pytest.raises(DataError, match=r"data\.train: data set '.*set' is not in the local cache"):
        prepare({"dataset": str(directory), "streaming": True})
    assert waits == [1, 2, 4, 8, 16]
    waits.clear()
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError):
        prepare({"dataset": str(directory)})
    assert waits == [], "who said that there is no network need not wait for it"


def test_a_stream_that_breaks_off_goes_on_behind_the_last_row(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [text for text, _ in stream(directory).documents_from({"rows": 0})]
    waits: list[float] = []
    for told in (datasets.config, constants):
        monkeypatch.setattr(told, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("wuneng.data.streamed.time.sleep", waits.append)
    breaks = iter([3, 1, 7, 0, 99])

    class Flaky(datasets.IterableDataset):
        """Breaks off after as many rows as is said, each time that it is read."""

        def __iter__(self) -> Any:
            for number, row in enumerate(super().__iter__()):
                if number == left[0]:
                    left[0] = next(breaks)
                    raise ConnectionError("no route")
                yield row

    left = [next(breaks)]
    source = stream(directory)
    source._dataset.__class__ = Flaky
    found = list(source.documents_from({"rows": 0}))
    assert [text for text, _ in found] == whole
    # The row before is read first, to see whether its place is still the same: 1 and 0 bring none.
    assert waits == [1, 2, 1, 2]
    assert [text for text, _ in stream(directory).documents_from(found[10][1])] == whole[11:]

    waits.clear()
    breaks, left[0] = iter([0] * 99), 2
    with pytest.raises(
        RunError, match=r"data\.train: .*, after row 2: cannot be reached \(no route"
    ):
        list(source.documents_from({"rows": 0}))
    assert waits == [1, 2, 4, 8, 16]


def stream(directory: Path, limit: int | None = None) -> StreamedDataset:
    loaded = datasets.load_dataset(str(directory), split="train", streaming=True)
    return StreamedDataset(loaded, "set", "text", "data.train", limit)


@pytest.mark.parametrize("broken", ["state", "digest", "nothing"])
def test_a_state_that_leads_elsewhere_is_not_trusted(
    directory: Path, stories: list[str], broken: str
) -> None:
    documents = stream(directory).documents_from({"rows": 0})
    position = [next(documents) for _ in range(30)][-1][1]
    if broken == "state":
        position["state"] = {"epoch": 0, "examples_iterable": {"type": "of another release"}}
    elif broken == "digest":
        position["digest"] = "0" * 16
    resumed = stream(directory).documents_from(json.loads(json.dumps(position)))
    rest = list(resumed)
    assert [text for text, _ in rest] == stories[30:54]
    assert rest[-1][1]["rows"] == 54
    if broken != "nothing":
        again = stream(directory).documents_from(rest[9][1])
        assert [text for text, _ in again] == stories[40:54]


def test_limit_counts_from_the_start(directory: Path, stories: list[str]) -> None:
    limited = stream(directory, 20)
    assert list(limited.documents()) == stories[:20]
    *_, (_, position) = islice(limited.documents_from({"rows": 0}), 15)
    assert [text for text, _ in limited.documents_from(position)] == stories[15:20]


def test_a_streamed_validation_set_and_a_trained_tokenizer(
    prepare: Any, directory: Path, stories: list[str]
) -> None:
    prepared = prepare(
        {"dataset": str(directory), "streaming": True},
        validation={"dataset": str(directory), "split": "validation", "streaming": True},
        tokenizer={"train_bpe": 280},
    )
    counted = sum(batch.target_bytes for batch in prepared.final.batches())
    assert counted == sum(len(text.encode()) for text in stories[54:])
    assert prepared.vocab_size == 280
    assert prepared.train.next_batch().target_bytes > 4 * 16


def test_a_stream_is_not_continued_with_another_tokenizer(
    prepare: Any, tmp_path: Path, write_jsonl: Write, stories: list[str]
) -> None:
    """One learned from a stream is another where the stream has changed, of as many tokens."""
    source = {"dataset": str(tmp_path / "set"), "streaming": True}

    def train(texts: list[str]) -> Any:
        write_jsonl("set/train.jsonl", texts)
        return prepare(source, tokenizer={"train_bpe": 280}).train

    state = train(stories).state_dict()
    train(stories).load_state_dict(state)
    other = train([text.upper() for text in stories])
    with pytest.raises(CheckpointError, match=r"data\.tokenizer makes other tokens of a text"):
        other.load_state_dict(state)
    del state["tokenizer"]  # as earlier versions left it
    other.load_state_dict(state)


def test_an_empty_stream_is_said(prepare: Any, tmp_path: Path, write_jsonl: Write) -> None:
    valid = str(write_jsonl("v.jsonl", ["only text"]))
    write_jsonl("set/train.jsonl", ["only text"])
    source = {"dataset": str(tmp_path / "set"), "streaming": True}
    train = prepare(source, validation=valid).train
    with pytest.raises(DataError, match=r"data\.train: no training text in data set"):
        train.next_batch()


def test_other_bytes_than_utf_8_are_told_with_their_row(
    tmp_path: Path, prepare: Callable[..., Prepared]
) -> None:
    offsets = arrow.py_buffer(struct.pack("<4i", 0, 2, 5, 7))
    text = arrow.Array.from_buffers(
        arrow.string(), 3, [None, offsets, arrow.py_buffer(b"okab\xffcd")]
    )
    (tmp_path / "set").mkdir()
    parquet.write_table(arrow.table({"text": text}), tmp_path / "set" / "train.parquet")
    message = r"data\.train: data set .*set, split train, row 2: expected UTF-8 text"
    with pytest.raises(DataError, match=message):
        prepare({"dataset": str(tmp_path / "set")})


def test_why_a_data_set_cannot_be_made(tmp_path: Path, prepare: Callable[..., Prepared]) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text('{"text": "a"}\n{"text": "b\n')
    with pytest.raises(DataError, match=r"An error occurred .*: JSON parse error: .+ in row 1"):
        prepare({"dataset": str(tmp_path / "set")})
