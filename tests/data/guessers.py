"""Guesses that look at less than a task needs: what they get right on rows they have not seen.

Each learns from some examples and is scored on others. None of them may do better than chance.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from wuneng.data.batch import IGNORED
from wuneng.synthetic.task import Examples, Task, random_stream

_MOST_QUESTIONS = 12_000

Answers = NDArray[np.int64]


class Questions:
    """Some scored positions of a task's rows, and what a guesser may know of each.

    Attributes:
        answers: ``[Q]``; where: ``[Q]`` the position; nth: ``[Q]`` which question of its row;
        last: ``[Q]`` the token there; counts: ``[Q, V]`` how often each token has come so far.
    """

    def __init__(self, task: Task, examples: Examples, random: np.random.Generator) -> None:
        rows, where = np.nonzero(examples.labels != IGNORED)
        asked = np.cumsum(examples.labels != IGNORED, axis=1) - 1
        chosen = np.sort(random.permutation(len(rows))[:_MOST_QUESTIONS])
        rows, where = rows[chosen], where[chosen]
        self.answers = examples.labels[rows, where]
        self.where = where
        self.nth = asked[rows, where]
        self.last = examples.inputs[rows, where]
        self.counts = np.zeros((len(rows), task.vocab_size))
        for question, (row, place) in enumerate(zip(rows, where, strict=True)):
            tokens = examples.inputs[row, : place + 1]
            self.counts[question] = np.bincount(tokens, minlength=task.vocab_size)


Guesser = Callable[[Questions, Questions], Answers]


def majority(seen: Questions, asked: Questions) -> Answers:
    """The most frequent answer."""
    return np.full(len(asked.answers), np.bincount(seen.answers).argmax())


def _majority_given(seen: Answers, answers: Answers, asked: Answers) -> Answers:
    size = int(max(seen.max(), asked.max())) + 1
    table = np.zeros((size, int(answers.max()) + 1))
    np.add.at(table, (seen, answers), 1)
    return table.argmax(axis=1)[asked]


def by_position(seen: Questions, asked: Questions) -> Answers:
    """The most frequent answer at this position."""
    return _majority_given(seen.where, seen.answers, asked.where)


def by_turn(seen: Questions, asked: Questions) -> Answers:
    """The most frequent answer to the n-th question of a row."""
    return _majority_given(seen.nth, seen.answers, asked.nth)


def by_last_token(seen: Questions, asked: Questions) -> Answers:
    """The most frequent answer at this token."""
    return _majority_given(seen.last, seen.answers, asked.last)


def by_bag(seen: Questions, asked: Questions) -> Answers:
    """Naive Bayes on how often each token has occurred so far."""
    answers = np.unique(seen.answers)
    shares = np.stack([seen.counts[seen.answers == answer].sum(0) + 1.0 for answer in answers])
    shares /= shares.sum(1, keepdims=True)
    prior = np.log([(seen.answers == answer).mean() for answer in answers])
    return answers[(asked.counts @ np.log(shares).T + prior).argmax(1)]


def least_often_seen(seen: Questions, asked: Questions) -> Answers:
    """Of the tokens that are ever an answer, the one that has occurred least often so far."""
    answers = np.unique(seen.answers)
    return answers[asked.counts[:, answers].argmin(1)]


def most_often_seen(seen: Questions, asked: Questions) -> Answers:
    """Of the tokens that are ever an answer, the one that has occurred most often so far."""
    answers = np.unique(seen.answers)
    return answers[asked.counts[:, answers].argmax(1)]


GUESSERS: tuple[Guesser, ...] = (majority, by_position, by_turn, by_last_token, by_bag)

#: They need not be as good as chance: a symbol that is in the question is often not the answer.
ELIMINATING: tuple[Guesser, ...] = (most_often_seen, least_often_seen)


def accuracies(task: Task, rows: int, length: int) -> dict[str, float]:
    """What each guesser gets right on ``rows`` rows, having learned from as many others."""
    stream = random_stream("guessers", task.name, length)
    seen, asked = (Questions(task, task.examples(stream, rows, length), stream) for _ in range(2))
    return {
        guess.__name__: float((guess(seen, asked) == asked.answers).mean())
        for guess in (*GUESSERS, *ELIMINATING)
    }
