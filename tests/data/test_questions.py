"""One's own questions: rows of .jsonl files, of which only the answers are learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wuneng.data import prepare_text, question_rows
from wuneng.data.batch import IGNORED
from wuneng.data.encoding import Encoder
from wuneng.data.question_rows import QuestionRows
from wuneng.data.questions import Question, question_of, read_questions
from wuneng.data.tokenizer import byte_tokenizer
from wuneng.errors import DataError
from wuneng.recipe.data import QuestionFields

PLACES = ("kitchen", "garden", "hall")


def row(i: int) -> dict[str, Any]:
    return {
        "story": f"Mary took {i} steps to the {PLACES[i % 3]}.",
        "q": "Where is Mary?",
        "a": PLACES[i % 3],
    }


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


FIELDS = {"question": "q", "answer": "a", "context": "story"}


def spelled(tokens: Any) -> str:
    return bytes(int(token) for token in tokens if token < 256).decode()


def test_the_wording() -> None:
    fields = QuestionFields(**FIELDS)
    found = question_of(row(1), fields, "here")
    assert found.prompt == "Mary took 1 steps to the garden.\nQuestion: Where is Mary?\nAnswer:"
    assert found.text.endswith("\nAnswer: garden")
    bare = question_of({"question": " Why? ", "answer": 42}, QuestionFields(), "here")
    assert (bare.prompt, bare.answer, bare.choices) == ("Question: Why?\nAnswer:", "42", ())
    for answer in (1, "no"):
        row_of = {"question": "Well?", "answer": answer, "choices": ["yes", "no"]}
        assert question_of(row_of, QuestionFields(), "here").answer == "no"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"qustion": "Why?", "answer": "so"},
         "line 1: no field 'question'; the fields are 'qustion', 'answer'. Did you mean 'qustion'"),
        ({"question": "Why?"}, "line 1: no field 'answer'"),
        ({"question": "Why?", "answer": " "}, "field 'answer' is empty; expected an answer"),
        ({"question": "Why?", "answer": None}, "field 'answer' should be text, got NoneType"),
        ({"question": "Why?", "answer": "so", "context": 3}, "field 'context' should be text"),
        ({"question": "Why?", "answer": "so", "choices": ["so"]},
         "field 'choices' should be a list of two texts or more"),
        ({"question": "Why?", "answer": "so", "choices": ["a", "a"]}, "should hold different"),
        ({"question": "Why?", "answer": "so", "choices": ["a", "b"]},
         "'so' is none of the choices ('a', 'b')"),
        ({"question": "Why?", "answer": 2, "choices": ["a", "b"]},
         "field 'answer' should be one of the choices 0 to 1, got 2"),
        (["Why?"], "line 1: expected one JSON object a line"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(tmp_path: Path, record: Any, message: str) -> None:
    path = write(tmp_path / "bad.jsonl", [record])
    with pytest.raises(DataError) as error:
        list(read_questions(path, QuestionFields()))
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_only_answers_are_scored_and_no_question_is_cut_in_two(tmp_path: Path) -> None:
    encoder = Encoder(byte_tokenizer())
    questions = [question_of(row(i), QuestionFields(**FIELDS), "") for i in range(10)]
    rows = QuestionRows(questions, encoder, 160, "key")
    batch = rows.batch(np.arange(len(rows)))
    assert batch.input_ids.shape == (len(rows), 160)
    assert batch.document_ids is not None
    told: list[str] = []
    for tokens, labels, documents in zip(
        batch.input_ids, batch.labels, batch.document_ids, strict=True
    ):
        for document in documents.unique().tolist():
            here = documents == document
            wanted = labels[here] != IGNORED
            if not wanted.any():
                assert (tokens[here] == encoder.end).all(), "only the filling has nothing to learn"
                continue
            assert tokens[here][0] == encoder.start
            told.append(spelled(tokens[here]))
            answer = labels[here][wanted]
            assert answer[-1] == encoder.end, "that the answer ends is learned, too"
            assert told[-1].endswith("\nAnswer:" + spelled(answer))
            # Each label is the token that follows.
            places = torch.nonzero(wanted).flatten()[:-1]
            assert torch.equal(tokens[here][places + 1], labels[here][places])
    assert told == [question.text for question in questions]
    assert batch.target_bytes == sum(1 + len(question.answer) for question in questions)


def test_long_prompts_lose_their_beginning_and_long_answers_are_refused() -> None:
    encoder = Encoder(byte_tokenizer())
    rows = QuestionRows([Question("x" * 90 + " Answer:", "yes")], encoder, 40, "key")
    assert rows.cut == 1
    batch = rows.batch(np.array([0]))
    assert batch.input_ids[0, 0] == encoder.start
    assert spelled(batch.input_ids[0]).endswith("x Answer: yes")
    assert int((batch.labels != IGNORED).sum()) == len(" yes") + 1
    with pytest.raises(DataError, match=r"has 41 tokens; expected fewer than training.sequence"):
        QuestionRows([Question("Answer:", "y" * 40)], encoder, 40, "key")


def test_a_recipe_reads_questions(settings: Any, tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", [row(i) for i in range(60)])
    valid = write(tmp_path / "valid.jsonl", [row(i) for i in range(50, 70)])
    data = settings.text(train=[str(train)], validation=[str(valid)], questions=FIELDS)
    run = settings.training(sequence_length=160)
    prepared = prepare_text(data, run, settings.evaluation(), 0)
    assert f"training: {train}: 50 questions in 25 rows" in prepared.description, "10 are shared"
    assert f"validation: {valid}: 20 questions in 10 rows" in prepared.description
    batch = prepared.train.next_batch()
    assert batch.input_ids.shape == (4, 160)
    again = prepare_text(data, run, settings.evaluation(), 0)
    assert torch.equal(again.train.next_batch().input_ids, batch.input_ids)
    state = prepared.train.state_dict()
    following = prepared.train.next_batch()
    again.train.load_state_dict(state)
    assert torch.equal(again.train.next_batch().labels, following.labels)
    scored = sum(int((b.labels != IGNORED).sum()) for b in prepared.final.batches())
    assert scored == sum(len(f" {PLACES[i % 3]}") + 1 for i in range(50, 70))


@pytest.mark.parametrize("tokenizer", ["bytes", {"train_bpe": 300}], ids=["bytes", "bpe"])
def test_questions_are_tokenised_once(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Any
) -> None:
    """And are then found in the cache, with the tokens that each by itself has."""
    train = write(tmp_path / "all.jsonl", [row(i) for i in range(80)])
    data = settings.text(train=[str(train)], questions=FIELDS, tokenizer=tokenizer)
    run = settings.training(sequence_length=160)
    texts: list[str] = []
    for method in ("encode", "encode_pieces"):
        original = getattr(Encoder, method)

        def noting(self: Encoder, given: Any, original: Any = original) -> Any:
            texts.extend(one if isinstance(one, str) else one[1] for one in given)
            return original(self, given)

        monkeypatch.setattr(Encoder, method, noting)
    found = [prepare_text(data, run, settings.evaluation(), seed) for seed in (0, 0, 1)]
    questions = [question_of(row(i), QuestionFields(**FIELDS), "") for i in range(80)]
    expected = [text for q in questions for text in (q.prompt, f" {q.answer}")]
    assert sorted(texts) == sorted(expected)
    monkeypatch.setattr(question_rows, "KeptQuestions", lambda *given: None)
    plain = prepare_text(data, run, settings.evaluation(), 0)
    assert len(texts) == 2 * len(expected), "tokenised again, the plain way"
    for _ in range(5):
        batch, other = found[0].train.next_batch(), plain.train.next_batch()
        assert torch.equal(batch.input_ids, other.input_ids)
        assert torch.equal(batch.labels, other.labels)


def test_questions_are_held_out_by_their_hash(settings: Any, tmp_path: Path) -> None:
    train = write(tmp_path / "all.jsonl", [row(i) for i in range(60)])
    data = settings.text(train=[str(train)], questions=FIELDS, validation_fraction=0.3)
    run = settings.training(sequence_length=160)
    halves = []
    for part in ("all", "tuning", "final"):
        chosen = data.model_copy(update={"validation_part": part})
        batches = prepare_text(chosen, run, settings.evaluation(), 0).final.batches()
        halves.append({spelled(row) for batch in batches for row in batch.input_ids})
    assert all(halves)
    text = "".join(halves[0])
    assert len(text) == len("".join(halves[1])) + len("".join(halves[2]))


def test_a_byte_pair_tokenizer_is_learned_from_questions(settings: Any, tmp_path: Path) -> None:
    train = write(tmp_path / "all.jsonl", [row(i) for i in range(80)])
    data = settings.text(
        train=[str(train)], questions=FIELDS, tokenizer={"train_bpe": 300}, validation_fraction=0.2
    )
    prepared = prepare_text(data, settings.training(sequence_length=64), settings.evaluation(), 0)
    assert 257 < prepared.vocab_size <= 300


def test_other_files_are_refused(settings: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text")
    data = settings.text(train=[str(tmp_path / "a.txt")], questions={})
    with pytest.raises(DataError, match=r"data\.train: .*a\.txt: questions are read from \.jsonl"):
        prepare_text(data, settings.training(), settings.evaluation(), 0)
