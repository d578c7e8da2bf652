"""The validation split: by content, stable, and never sharing a document with training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wuneng.data.encoding import Encoder
from wuneng.data.segments import cut_document
from wuneng.data.sources import open_source
from wuneng.data.split import choose_validation, document_digest, falls_in_validation
from wuneng.data.token_cache import Corpus, tokenized
from wuneng.data.tokenizer import byte_tokenizer

ENCODER = Encoder(byte_tokenizer())


def digests(documents: list[str]) -> np.ndarray:
    return np.array([document_digest(text) for text in documents], dtype=np.uint64)


def corpus_of(paths: list[Path], root: Path) -> Corpus:
    source = open_source([str(path) for path in paths], "data.train", "text", None)
    return tokenized(source, ENCODER, root)  # type: ignore[arg-type]


def test_fraction_is_kept_and_nested() -> None:
    hashes = digests([f"document {i}" for i in range(4000)])
    small, large = falls_in_validation(hashes, 0.05), falls_in_validation(hashes, 0.2)
    assert 0.035 < small.mean() < 0.065
    assert 0.18 < large.mean() < 0.22
    assert (large | ~small).all()


def test_choice_does_not_move_when_documents_are_added_or_reordered() -> None:
    documents = [f"document {i}" for i in range(500)]
    before = dict(zip(documents, falls_in_validation(digests(documents), 0.1), strict=True))
    more = [*documents[::-1], *(f"another {i}" for i in range(500))]
    after = dict(zip(more, falls_in_validation(digests(more), 0.1), strict=True))
    assert all(after[text] == out for text, out in before.items())


def test_equal_documents_are_on_one_side() -> None:
    documents = [f"{i % 20}" for i in range(100)]
    out = choose_validation(digests(documents), 0.3)
    sides = {
        text: {bool(o) for t, o in zip(documents, out, strict=True) if t == text}
        for text in documents
    }
    assert all(len(side) == 1 for side in sides.values())


@pytest.mark.parametrize("fraction", [1e-9, 0.05, 0.5, 0.999999])
@pytest.mark.parametrize("count", [2, 3, 10])
def test_neither_side_is_ever_empty(count: int, fraction: float) -> None:
    out = choose_validation(digests([f"{i}" for i in range(count)]), fraction)
    assert 0 < out.sum() < count


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.6])
def test_one_document_is_cut_at_a_line(tmp_path: Path, cache: Path, fraction: float) -> None:
    lines = [f"line {i} é\n" for i in range(200)]
    path = tmp_path / "a.txt"
    path.write_text("".join(lines))
    corpus = corpus_of([path], cache)
    head, tail = cut_document(corpus, ENCODER, fraction)
    assert head.tokens + tail.tokens == len(corpus.tokens)
    cut = int(tail.starts[0])
    assert corpus.tokens[cut - 1] == ord("\n")
    assert abs(tail.tokens / len(corpus.tokens) - fraction) < 0.01
    assert head.last_labels.tolist() == [-100]
    assert tail.last_labels.tolist() == [256]


def test_a_far_line_end_does_not_move_the_cut(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("title\n" + "x" * 10_000)
    head, tail = cut_document(corpus_of([path], cache), ENCODER, 0.1)
    assert 0.09 < tail.tokens / (head.tokens + tail.tokens) < 0.11


def test_training_and_validation_share_nothing(
    settings: Any, write_jsonl: Callable[[str, list[str]], Path], stories: list[str]
) -> None:
    from wuneng.data import prepare_text

    path = write_jsonl("a.jsonl", stories * 2)
    data = settings.text(train=str(path), validation_fraction=0.2)
    prepared = prepare_text(data, settings.training(), settings.evaluation(), seed=0)
    decode = prepared.tokenizer.decode

    def documents(rows: Any) -> set[str]:
        batch = rows.batch(np.arange(len(rows)))
        return set(decode(batch.input_ids.flatten().tolist()).split("<|endoftext|>")) - {""}

    kept = documents(prepared.train.rows)  # type: ignore[attr-defined]
    scored = documents(prepared.final.rows)  # type: ignore[attr-defined]
    assert not kept & scored
    assert kept | scored == set(stories)


@pytest.mark.parametrize("own_files", [False, True])
def test_the_two_halves_of_validation_share_nothing(
    settings: Any,
    write_jsonl: Callable[[str, list[str]], Path],
    stories: list[str],
    own_files: bool,
) -> None:
    """What tuning is scored on is never scored at the end, and both together are all of it."""
    from wuneng.data import prepare_text

    fields: dict[str, Any] = {"train": str(write_jsonl("a.jsonl", stories * 2))}
    if own_files:
        fields["validation"] = str(write_jsonl("b.jsonl", [text[::-1] for text in stories] * 2))
    else:
        fields["validation_fraction"] = 0.4

    def scored(part: str) -> list[str]:
        data = settings.text(**fields, validation_part=part)
        prepared = prepare_text(data, settings.training(), settings.evaluation(), seed=0)
        rows: Any = prepared.final.rows  # type: ignore[attr-defined]
        text = prepared.tokenizer.decode(
            rows.batch(np.arange(len(rows))).input_ids.flatten().tolist()
        )
        return [document for document in text.split("<|endoftext|>") if document]

    whole, tuning, final = (scored(part) for part in ("all", "tuning", "final"))
    assert not set(tuning) & set(final)
    assert set(tuning) | set(final) == set(whole)
    assert abs(len(set(tuning)) - len(set(final))) <= 1


@pytest.mark.parametrize("part", ["tuning", "final"])
def test_a_single_document_has_no_halves(
    settings: Any, write_jsonl: Callable[[str, list[str]], Path], stories: list[str], part: str
) -> None:
    from wuneng.data import prepare_text
    from wuneng.errors import DataError

    path = write_jsonl("a.jsonl", ["".join(stories)] * 2)
    data = settings.text(train=str(path), validation_part=part)
    with pytest.raises(DataError, match=r"data\.validation_part: .* two different ones"):
        prepare_text(data, settings.training(), settings.evaluation(), seed=0)
