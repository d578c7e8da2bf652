"""Questions in words, made from the rows of a generated task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from wuneng.data.batch import IGNORED
from wuneng.errors import TaskError
from wuneng.recipe.task_settings import TaskSettings
from wuneng.synthetic.task import Task, random_stream
from wuneng.synthetic.tasks import make_task

__all__ = ["Asked", "Form", "Level", "Question", "questions"]

# So many rows are drawn at a time, and so many times before too small a space is given up.
_ROWS = 32
_MOST_DRAWS = 200


@dataclass(frozen=True)
class Question:
    """One item.

    Attributes:
        prompt: all that is said, up to and with ``Answer:``.
        choices: every answer that comes into question.
        answer: the place of the right one among them.
    """

    prompt: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Asked:
    """A row of a task, and one of its questions.

    Attributes:
        task: that made the row.
        tokens: of the row, up to and with the one at which the question is asked.
        answer: the label there.
        turn: which of the row's questions it is, from 0.
        draw: a random number, for what the row leaves open.
    """

    task: Any
    tokens: list[int]
    answer: int
    turn: int
    draw: int


@dataclass(frozen=True)
class Level:
    """One difficulty: what it is counted as, and the rows that it is made of."""

    value: int
    settings: TaskSettings
    length: int


@dataclass(frozen=True)
class Form:
    """How a task is put in words.

    Attributes:
        measure: what levels count, as ``bits`` or ``hops``.
        levels: the difficulties.
        tell: a row and a question in words.
        turn: which of a row's questions is asked; -1 for the last, None for any.
        items: of each level.
        fewshot: solved examples that go before each question, of the easiest level.
    """

    measure: str
    levels: tuple[Level, ...]
    tell: Callable[[Asked], Question]
    turn: int | None = -1
    items: int = 50
    fewshot: int = 3


def questions(name: str, form: Form, level: Level, count: int, known: set[str]) -> list[Question]:
    """``count`` questions of a level, none of whose prompts is ``known``; theirs are added to it.

    Raises TaskError when the level has not so many.
    """
    task = make_task(level.settings)
    random = random_stream("suite", name, level.value, len(known))
    found: list[Question] = []
    for _ in range(_MOST_DRAWS):
        examples = task.examples(random, _ROWS, level.length)
        for row, labels in zip(examples.inputs.tolist(), examples.labels.tolist(), strict=True):
            draw = int(random.integers(2**31))
            question = form.tell(_asked(task, row, labels, form.turn, draw))
            if question.prompt not in known:
                known.add(question.prompt)
                found.append(question)
            if len(found) == count:
                return found
    raise TaskError(f"{name}: has no {count} different questions of {level.value} {form.measure}")


def _asked(
    task: Task, row: Sequence[int], labels: Sequence[int], turn: int | None, draw: int
) -> Asked:
    """Question ``turn`` of a row, as Python counts the places of a list; None for any."""
    places = [place for place, label in enumerate(labels) if label != IGNORED]
    turn = (draw if turn is None else turn) % len(places)
    return Asked(task, list(row[: places[turn] + 1]), labels[places[turn]], turn, draw)
