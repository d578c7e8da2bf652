"""Questions as rows of T tokens, several in a row and none cut in two; only answers are scored.

row      | start ...Answer: kitchen | start ...Answer: garden | end end
labels     -     -     kitchen end    -     -     garden end     -   -
document   0     0     0              1     1     1              2   2
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from wuneng.data.batch import EPOCHS, IGNORED, Batch
from wuneng.data.encoding import Encoder
from wuneng.data.packing import TASK
from wuneng.data.parallel_encoding import Tokens
from wuneng.data.question_tokens import KeptQuestions
from wuneng.data.questions import Question, QuestionSource
from wuneng.data.sources import DocumentSource
from wuneng.data.split import choose_half, choose_validation, document_digest
from wuneng.data.streamed import StreamedDataset
from wuneng.data.token_cache import Corpus
from wuneng.errors import DataError
from wuneng.recipe.data import TextData
from wuneng.recipe.training import Training

__all__ = ["QuestionRows", "question_rows"]

_TOGETHER = 256

Pair = tuple[NDArray[np.int64], NDArray[np.int64]]


class QuestionRows:
    """Random access to rows of questions.

    A prompt that leaves no room for its answer loses its beginning (``cut`` counts them). What
    ``kept`` has is not tokenised again.

    Raises DataError for an answer as long as a row, and where there is no question.
    """

    def __init__(
        self,
        questions: Iterable[Question],
        encoder: Encoder,
        sequence_length: int,
        key: str,
        *,
        boundaries: bool = True,
        kept: KeptQuestions | None = None,
    ) -> None:
        self.key = key
        self.sequence_length = sequence_length
        self.boundaries = boundaries
        self.cut = 0
        self.answer_tokens = 0
        self._filler = encoder.end
        self._lengths = encoder.spelling.lengths
        self._rows: list[list[Pair]] = [[]]
        free = sequence_length
        for pair in self._encoded(list(questions), encoder, kept):
            if len(pair[0]) > free:
                self._rows.append([])
                free = sequence_length
            self._rows[-1].append(pair)
            free -= len(pair[0])

    def __len__(self) -> int:
        return len(self._rows)

    def tokens_of(self, row: int) -> int:
        """Tokens of the questions in a row."""
        return sum(len(tokens) for tokens, _ in self._rows[row])

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """The rows of these numbers, in this order, as a Batch of ``[len(rows), T]``."""
        shape = (len(rows), self.sequence_length)
        inputs = np.full(shape, self._filler, dtype=np.int64)
        labels = np.full(shape, IGNORED, dtype=np.int64)
        documents = np.empty(shape, dtype=np.int32)
        for place, row in enumerate(rows):
            begin = 0
            for number, (tokens, wanted) in enumerate(self._rows[row]):
                end = begin + len(tokens)
                inputs[place, begin:end], labels[place, begin:end] = tokens, wanted
                documents[place, begin:end] = number
                begin = end
            documents[place, begin:] = len(self._rows[row])
        spelled = [int(self._lengths[row[row != IGNORED]].sum()) for row in labels]
        return Batch(
            input_ids=torch.from_numpy(inputs),
            labels=torch.from_numpy(labels),
            document_ids=torch.from_numpy(documents) if self.boundaries else None,
            task=TASK,
            length=self.sequence_length,
            row_bytes=tuple(spelled),
        )

    def _encoded(
        self, questions: list[Question], encoder: Encoder, kept: KeptQuestions | None
    ) -> Iterable[Pair]:
        """Tokens and labels of each question."""
        found = _tokenised(questions, encoder) if kept is None else map(kept.tokens, questions)
        for question, (prompt, answer) in zip(questions, found, strict=True):
            asked = prompt[: len(prompt) - encoder.two_marks].astype(np.int64)
            yield self._pair(question, asked, answer[1:].astype(np.int64), encoder)

    def _pair(
        self,
        question: Question,
        asked: NDArray[np.int64],
        answer: NDArray[np.int64],
        encoder: Encoder,
    ) -> Pair:
        room = self.sequence_length - len(answer)
        if room < 2:
            raise DataError(
                f"the answer {question.answer[:40]!r} has {len(answer)} tokens; expected fewer "
                f"than training.sequence_length = {self.sequence_length}"
            )
        if len(asked) > room:
            self.cut += 1
            asked = np.concatenate([asked[:1], asked[1 - room :]])
        tokens = np.concatenate([asked, answer])
        labels = np.full(len(tokens), IGNORED, dtype=np.int64)
        labels[len(asked) - 1 : -1] = answer
        if not encoder.two_marks:  # else the end mark is the answer's own last token
            labels[-1] = encoder.end
        self.answer_tokens += int((labels != IGNORED).sum())
        return tokens, labels


def _tokenised(questions: list[Question], encoder: Encoder) -> Iterator[tuple[Tokens, Tokens]]:
    """Prompt and answer of each; the prompt is encoded apart, as when it is asked."""
    for first in range(0, len(questions), _TOGETHER):
        some = questions[first : first + _TOGETHER]
        prompts = encoder.encode([question.prompt for question in some])
        answers = encoder.encode([f" {question.answer}" for question in some])
        yield from zip(prompts, answers, strict=True)


def question_rows(
    train: QuestionSource,
    validation: DocumentSource | StreamedDataset | None,
    data: TextData,
    encoder: Encoder,
    training: Training,
    tokenized: Callable[[DocumentSource], Corpus],
) -> tuple[QuestionRows, QuestionRows, list[str]]:
    """Rows to train on, rows to score, and what there is to say about them.

    Without files of their own, validation questions are held out of the training files by the hash
    of their text. No question is in both. ``tokenized`` gives the tokens of a source's documents.

    Raises DataError where one side has no question.
    """
    asked = list(train.questions())
    if not asked:
        raise DataError(f"data.train: no question in {train.name}")
    tokens = tokens_of_held = KeptQuestions(train, tokenized)
    if isinstance(validation, QuestionSource):
        tokens_of_held = KeptQuestions(validation, tokenized)
        held = list(validation.questions())
        known = {question.text for question in held}
        kept, how = [q for q in asked if q.text not in known], validation.name
        key = f"{train.content_key()}{validation.content_key()}"
    else:
        out = _held_out(asked, data.validation_fraction)
        held = [q for q, chosen in zip(asked, out, strict=True) if chosen]
        kept = [q for q, chosen in zip(asked, out, strict=True) if not chosen]
        how, key = "the questions held out by their hash", train.content_key()
    if not held or not kept:
        which = "data.validation" if not held else "data.train"
        raise DataError(f"{which}: no question is left, since none may be in training as well")
    if data.validation_part != "all":
        digests = np.array([document_digest(q.text) for q in held], dtype=np.uint64)
        half = choose_half(
            digests, np.ones(len(held), np.bool_), second=data.validation_part == "final"
        )
        held = [q for q, chosen in zip(held, half, strict=True) if chosen]
    key = f"{key}{encoder.digest}"
    made = [
        QuestionRows(
            *(questions, encoder, training.sequence_length, key),
            boundaries=data.pack_documents,
            kept=known_tokens,
        )
        for questions, known_tokens in ((kept, tokens), (held, tokens_of_held))
    ]
    seen = training.total_steps * training.batch_size / len(made[0])
    return (
        made[0],
        made[1],
        [
            _said("training", train.name, kept, made[0]),
            _said("validation", how, held, made[1]),
            f"{EPOCHS}{seen:.3g} times the training questions",
        ],
    )


def _held_out(questions: list[Question], fraction: float) -> NDArray[np.bool_]:
    digests = np.array([document_digest(q.text) for q in questions], dtype=np.uint64)
    if len(np.unique(digests)) < 2:
        raise DataError("data.train: expected two different questions, of which one is held out")
    return choose_validation(digests, fraction)


def _said(role: str, how: str, questions: list[Question], rows: QuestionRows) -> str:
    cut = f"; {rows.cut:,} cut from the left to fit a row" if rows.cut else ""
    return (
        f"{role}: {how}: {len(questions):,} questions in {len(rows):,} rows, "
        f"{rows.answer_tokens:,} tokens of answers scored{cut}"
    )
