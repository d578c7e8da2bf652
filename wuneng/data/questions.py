"""Questions and answers of .jsonl files, in the one wording that training and scoring share.

    {"context": "Mary went to the kitchen.", "question": "Where is Mary?", "answer": "kitchen"}

becomes

    Mary went to the kitchen.
    Question: Where is Mary?
    Answer: kitchen

of which `` kitchen`` is the answer and everything before it the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from wuneng.data.documents import json_records, readable, text_of
from wuneng.data.files import file_kind
from wuneng.data.sources import FileSource
from wuneng.errors import DataError
from wuneng.recipe.data import QuestionFields, TextData

__all__ = ["Question", "QuestionSource", "open_questions", "question_of", "read_questions"]


@dataclass(frozen=True)
class Question:
    """One row: what is asked, the right answer, and all answers if there is a choice."""

    prompt: str
    answer: str
    choices: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The whole, as it is learned."""
        return f"{self.prompt} {self.answer}"


class QuestionSource(FileSource):
    """The questions of files, in the order of ``find_files``; a document is a question's text."""

    def __init__(
        self, sources: list[str], field: str, fields: QuestionFields, most: int | None
    ) -> None:
        super().__init__(sources, field, fields.question, most)
        self.fields = fields
        for path in self.files:
            if not (file_kind(path) or "").startswith((".jsonl", ".json")):
                raise DataError(f"{field}: {path}: questions are read from .jsonl files only")

    def questions(self) -> Iterator[Question]:
        """Every file's questions, one file after the other."""
        everything = (q for path in self.files for q in read_questions(path, self.fields))
        return islice(everything, self.max_documents)

    def documents(self) -> Iterator[str]:
        """The texts of all questions."""
        return (question.text for question in self.questions())

    def _identity(self) -> object:
        return "questions", self.fields.model_dump(), self.max_documents


def open_questions(data: TextData) -> tuple[QuestionSource, QuestionSource | None]:
    """Training and validation questions; None where the latter are held out of the former."""
    assert data.questions is not None
    opened = [
        QuestionSource(files, field, data.questions, data.max_documents)
        for field, files in data.named_files()
    ]
    return opened[0], opened[1] if len(opened) > 1 else None


def read_questions(path: Path, fields: QuestionFields) -> Iterator[Question]:
    """The questions of a file. DataError with file, line and field for a row that is none."""
    with readable(path):
        for record, place in json_records(path):
            yield question_of(record, fields, place)


def question_of(record: Any, fields: QuestionFields, place: str) -> Question:
    """A row as a question; DataError, with its ``place``, where a field is missing or wrong."""
    asked = text_of(record, fields.question, place).strip()
    about = ""
    if fields.context is not None and fields.context in record:
        about = text_of(record, fields.context, place).strip()
    choices = _choices(record, fields.choices, place)
    answer = _answer(record, fields.answer, choices, place)
    said = f"{about}\n" if about else ""
    return Question(f"{said}Question: {asked}\nAnswer:", answer, choices)


def _choices(record: Any, field: str | None, place: str) -> tuple[str, ...]:
    if field is None or record.get(field) is None:
        return ()
    given = record[field]
    if not isinstance(given, list) or len(given) < 2:
        raise DataError(f"{place}: field {field!r} should be a list of two texts or more")
    found = [text_of({field: choice}, field, place).strip() for choice in given]
    if len(set(found)) < len(found):
        raise DataError(f"{place}: field {field!r} should hold different texts, got {found}")
    return tuple(found)


def _answer(record: Any, field: str, choices: tuple[str, ...], place: str) -> str:
    given = record.get(field)
    if choices and isinstance(given, int) and not isinstance(given, bool):
        if not 0 <= given < len(choices):
            raise DataError(
                f"{place}: field {field!r} should be one of the choices 0 to {len(choices) - 1}, "
                f"got {given}"
            )
        return choices[given]
    if isinstance(given, int | float) and not isinstance(given, bool):
        return str(given)  # a number is an answer as it is written
    answer = text_of(record, field, place).strip()
    if not answer:
        raise DataError(f"{place}: field {field!r} is empty; expected an answer")
    if choices and answer not in choices:
        raise DataError(f"{place}: field {field!r}: {answer!r} is none of the choices {choices}")
    return answer
