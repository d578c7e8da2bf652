"""Tasks in words that keep track of something: bits, counters, cards, boxes, carries."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

from wuneng.evaluate.suite.question import Asked, Form, Level, Question
from wuneng.recipe.task_settings import AdditionTask, BoxesTask, ComposeTask, StateTrackingTask

__all__ = ["STATE_FORMS"]

_CARDS = "ABCDE"
_OBJECTS = ("apple", "book", "coin", "drum", "egg")
_COLOURS = ("red", "blue", "green", "white")


def _parity(asked: Asked) -> Question:
    bits = " ".join(map(str, asked.tokens))
    prompt = f"Bits: {bits}\nIs the number of ones even or odd?\nAnswer:"
    return Question(prompt, ("even", "odd"), asked.answer)


def _counter(asked: Asked) -> Question:
    steps = " + ".join(map(str, asked.tokens))
    prompt = f"Count modulo 7, so that 7 is 0 again: {steps}\nWhat is the result?\nAnswer:"
    return Question(prompt, tuple("0123456"), asked.answer)


def _cards(points: int) -> Callable[[Asked], Question]:
    """A permutation p takes the card at place i to place p[i]; where is the first card?"""
    elements = list(permutations(range(points)))

    def tell(asked: Asked) -> Question:
        moves = " ".join(f"({' '.join(str(1 + i) for i in elements[p])})" for p in asked.tokens)
        example = " ".join(str(1 + i) for i in (1, 0, *range(2, points)))
        prompt = (
            f"Cards {' '.join(_CARDS[:points])} lie at places 1 to {points}. The move ({example}) "
            "takes the card at place 1 to place 2, the one at place 2 to place 1, and so on.\n"
            f"Moves: {moves}\nAt which place does card A lie?\nAnswer:"
        )
        choices = tuple(str(1 + i) for i in range(points))
        return Question(prompt, choices, elements[asked.answer][0])

    return tell


def _boxes(asked: Asked) -> Question:
    boxes, tokens = asked.task.boxes, asked.tokens
    lines = []
    for place, token in enumerate(tokens):
        if boxes <= token < 2 * boxes:
            box = _CARDS[tokens[place - 1]]
            lines.append(f"Box {box} holds the {_OBJECTS[token - boxes]}.")
        elif token == asked.task.swap:
            one, other = (_CARDS[box] for box in tokens[place + 1 : place + 3])
            lines.append(f"Swap what is in box {one} and box {other}.")
    prompt = f"{' '.join(lines)}\nWhat does box {_CARDS[tokens[-1]]} hold now?\nAnswer: the"
    return Question(prompt, _OBJECTS[:boxes], asked.answer - boxes)


def _addition(asked: Asked) -> Question:
    """The right sum is one of four that stand equally far from one another."""
    digits = asked.task.digits
    lowest_first = asked.tokens[1 : digits + 1], asked.tokens[digits + 2 :]
    a, b = (sum(digit * 10**i for i, digit in enumerate(number)) for number in lowest_first)
    right, differing = asked.draw % 4, asked.draw // 4 % digits
    sums = [a + b + (choice - right) * 10**differing for choice in range(4)]
    return Question(f"{a} + {b} =\nAnswer:", tuple(map(str, sums)), right)


def _compose(asked: Asked) -> Question:
    states, facts = asked.task.states, asked.task.facts
    said = zip(asked.tokens[0:facts:2], asked.tokens[1:facts:2], strict=True)
    meanings = " ".join(f"{state} means {_COLOURS[value - states]}." for state, value in said)
    steps = " + ".join(str(token - 2 * states) for token in asked.tokens[facts:])
    prompt = (
        f"{meanings}\nCount modulo {states}, so that {states} is 0 again: {steps}\n"
        "Which colour does the result mean?\nAnswer:"
    )
    return Question(prompt, _COLOURS[:states], asked.answer - states)


def _words_of(group: str, *lengths: int) -> tuple[Level, ...]:
    return tuple(Level(n, StateTrackingTask(group=group), n) for n in lengths)


_MOVES = (1, 2, 4, 8, 16)
_DIGITS = (2, 4, 8, 16)
_STEPS = (4, 8, 16, 32, 64)

STATE_FORMS: dict[str, Form] = {
    "parity": Form("bits", _words_of("parity", 8, 16, 32, 64, 128), _parity),
    "counter": Form("steps", _words_of("mod_7", *_STEPS), _counter),
    "s3": Form("moves", _words_of("s3", *_STEPS), _cards(3)),
    "s5": Form("moves", _words_of("s5", *_STEPS), _cards(5)),
    "boxes": Form(
        "moves",
        tuple(Level(n, BoxesTask(boxes=5, moves=n), 10 + 5 * n) for n in _MOVES),
        _boxes,
    ),
    "addition": Form(
        "digits",
        tuple(Level(n, AdditionTask(digits=n), 2 * n + 2) for n in _DIGITS),
        _addition,
    ),
    "compose": Form(
        "steps",
        tuple(Level(n, ComposeTask(group="mod_4"), 8 + n) for n in _STEPS),
        _compose,
    ),
}
