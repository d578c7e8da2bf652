"""What packing promises, for any documents and any length."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wuneng.data.batch import IGNORED, Batch
from wuneng.data.encoding import Encoder
from wuneng.data.packing import PackedRows
from wuneng.data.segments import segments_of
from wuneng.data.token_cache import Corpus
from wuneng.data.tokenizer import byte_tokenizer

ONE_MARK = Encoder(byte_tokenizer())
TWO_MARKS = Encoder(byte_tokenizer())
TWO_MARKS.start = 0  # as if a byte that the texts below never use were the beginning mark

DOCUMENTS = st.lists(st.text("abcé\n", min_size=1, max_size=30), min_size=1, max_size=12)


def corpus_of(documents: list[str], encoder: Encoder) -> Corpus:
    encoded = encoder.encode(documents)
    sizes = [len(tokens) for tokens in encoded]
    nothing = np.zeros(len(documents), np.int64)
    return Corpus(
        tokens=np.concatenate(encoded),
        offsets=np.cumsum([0, *sizes]),
        digests=nothing.astype(np.uint64),
        byte_counts=np.array([len(text.encode()) for text in documents]),
        corrections=nothing,
        key="",
    )


def packed(
    documents: list[str],
    length: int,
    encoder: Encoder = ONE_MARK,
    *,
    boundaries: bool = True,
    chosen: list[bool] | None = None,
) -> tuple[PackedRows, Batch]:
    corpus = corpus_of(documents, encoder)
    mask = None if chosen is None else np.array(chosen)
    segments = segments_of(corpus, encoder, mask)
    rows = PackedRows(corpus, segments, encoder, length, boundaries=boundaries)
    return rows, rows.batch(np.arange(len(rows)))


def test_the_picture_in_the_documentation() -> None:
    _, batch = packed(["abc", "de", "fgh"], 6)
    end = 256
    a, b, c, d, e, f, g, h = (ord(letter) for letter in "abcdefgh")
    assert batch.input_ids.tolist() == [[end, a, b, c, end, d], [e, end, f, g, h, end]]
    assert batch.labels.tolist() == [[a, b, c, end, d, e], [end, f, g, h, end, IGNORED]]
    assert batch.document_ids is not None
    assert batch.document_ids.tolist() == [[0, 0, 0, 0, 1, 1], [0, 1, 1, 1, 1, 2]]
    assert batch.target_bytes == 8
    assert (batch.input_ids.dtype, batch.document_ids.dtype) == (torch.int64, torch.int32)


def test_two_marks() -> None:
    _, batch = packed(["ab", "c"], 4, TWO_MARKS)
    a, b, c = (ord(letter) for letter in "abc")
    assert batch.input_ids.tolist() == [[0, a, b, 256], [0, c, 256, 256]]
    assert batch.labels.tolist() == [[a, b, 256, IGNORED], [c, 256, IGNORED, IGNORED]]


@given(DOCUMENTS, st.integers(2, 40), st.booleans())
@settings(max_examples=150, deadline=None)
def test_every_token_is_an_input_and_a_target_once(
    documents: list[str], length: int, two: bool
) -> None:
    encoder = TWO_MARKS if two else ONE_MARK
    _, batch = packed(documents, length, encoder)
    stream = np.concatenate(encoder.encode(documents)).tolist()
    flat = batch.input_ids.flatten().tolist()
    assert flat[: len(stream)] == stream
    assert len(flat) - len(stream) < length
    targets = [label for label in batch.labels.flatten().tolist() if label != IGNORED]
    assert bytes(t for t in targets if t != encoder.end) == "".join(documents).encode()
    assert targets.count(encoder.end) == len(documents)
    assert batch.target_bytes == len("".join(documents).encode())


@given(DOCUMENTS, st.integers(2, 40), st.booleans())
@settings(max_examples=150, deadline=None)
def test_no_label_crosses_a_document(documents: list[str], length: int, two: bool) -> None:
    encoder = TWO_MARKS if two else ONE_MARK
    _, batch = packed(documents, length, encoder)
    assert batch.document_ids is not None
    inputs, labels, ids = (
        tensor.numpy() for tensor in (batch.input_ids, batch.labels, batch.document_ids)
    )
    steps = np.diff(ids, axis=1)
    assert ((steps == 0) | (steps == 1)).all()
    assert (ids[:, 0] == 0).all()
    within = steps == 0
    known = labels[:, :-1] != IGNORED
    assert (labels[:, :-1] == inputs[:, 1:])[within & known].all()
    # The last position of a document inside a row predicts the end, or nothing.
    assert np.isin(labels[:, :-1][~within], [encoder.end, IGNORED]).all()
    # A new id begins exactly where a document does (or the filler behind the last).
    stream = sum(len(tokens) for tokens in encoder.encode(documents))
    begins = np.flatnonzero((inputs == encoder.start).flatten()[:stream])
    places = np.flatnonzero(np.pad(steps, ((0, 0), (1, 0))).flatten())
    expected = {int(b) for b in begins if b % length} | ({stream} if stream % length else set())
    assert set(places.tolist()) == expected


@given(DOCUMENTS, st.integers(2, 20), st.data())
@settings(max_examples=60, deadline=None)
def test_chosen_documents_alone_are_packed(
    documents: list[str], length: int, data: st.DataObject
) -> None:
    flags = st.lists(st.booleans(), min_size=len(documents), max_size=len(documents))
    chosen = data.draw(flags.filter(any))
    kept = [text for text, keep in zip(documents, chosen, strict=True) if keep]
    _, batch = packed(documents, length, chosen=chosen)
    _, alone = packed(kept, length)
    assert torch.equal(batch.input_ids, alone.input_ids)
    assert torch.equal(batch.labels, alone.labels)


def test_without_boundaries_tokens_and_labels_stay() -> None:
    documents = ["abc", "de", "fgh"]
    _, bounded = packed(documents, 5)
    _, stream = packed(documents, 5, boundaries=False)
    assert stream.document_ids is None
    assert torch.equal(stream.input_ids, bounded.input_ids)
    assert torch.equal(stream.labels, bounded.labels)
    flat = stream.input_ids.flatten().tolist()
    assert stream.labels.flatten().tolist()[:10] == flat[1:11]


@given(DOCUMENTS, st.integers(2, 12))
@settings(max_examples=60, deadline=None)
def test_bytes_of_rows_add_up(documents: list[str], length: int) -> None:
    rows, everything = packed(documents, length)
    single = [rows.batch(np.array([row])).target_bytes for row in range(len(rows))]
    assert sum(single) == everything.target_bytes
    for row, counted in enumerate(single):
        labels = everything.labels[row]
        assert counted == int(((labels >= 0) & (labels < 256)).sum())


@pytest.mark.parametrize("length", [3, 7, 64])
def test_corrections_make_the_bytes_of_a_document_exact(length: int) -> None:
    documents = ["abc", "é\n", "bca"]
    corpus = corpus_of(documents, ONE_MARK)
    corpus.corrections[:] = [-1, 2, 0]  # as if tokens spelled 1 too many, 2 too few
    segments = segments_of(corpus, ONE_MARK)
    rows = PackedRows(corpus, segments, ONE_MARK, length)
    counted = sum(rows.batch(np.array([row])).target_bytes for row in range(len(rows)))
    assert counted == 9 + 1
