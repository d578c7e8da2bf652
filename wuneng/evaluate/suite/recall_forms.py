"""Tasks in words for which something has to be found again: facts, chains, brackets, letters."""

from __future__ import annotations

from itertools import pairwise

from wuneng.evaluate.suite.question import Asked, Form, Level, Question
from wuneng.recipe.task_settings import (
    BracketsTask,
    ChainTask,
    FunctionsTask,
    InductionTask,
    RecallTask,
    SelectiveCopyTask,
)

__all__ = ["RECALL_FORMS", "WORDS"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


#: Short common words, for whatever needs names.
WORDS = _words(
    "amber anchor apron arrow bacon badge basket beetle bottle bridge brush button cactus camel "
    "candle carrot castle cherry clover copper cotton cradle curtain dagger desert dragon eagle "
    "engine falcon feather ferry flute"
)
#: The names of each set of a chain.
_SETS = (
    _words("Anna Ben Carl Dora Emil Fay Gus Hana"),
    _words("bear crow deer fox goat hare lynx mole"),
    _words("Athens Bern Cairo Delhi Essen Fargo Genoa Hull"),
    _words("black blue brown green pink red white yellow"),
    _words("apple banana cherry fig grape lemon mango pear"),
)
_OPENING, _CLOSING = "([{<", ")]}>"
_LETTERS = "ABCDEFGHIJKLMNOP"


def _recall(asked: Asked) -> Question:
    keys, values = asked.task.keys, asked.task.values
    said = [
        f"{WORDS[key].capitalize()} is {value - keys + 10}."
        for key, value in pairwise(asked.tokens)
        if key < keys <= value < keys + values
    ]
    prompt = f"{' '.join(said)}\nWhat is {WORDS[asked.tokens[-1]]}?\nAnswer:"
    choices = tuple(str(10 + value) for value in range(values))
    return Question(prompt, choices, asked.answer - keys)


def _chain(asked: Asked) -> Question:
    task, tokens = asked.task, asked.tokens
    said, place = [], 0
    while place < len(tokens) - 1:
        if tokens[place] == task.filler:
            place += 1
            continue
        said.append(
            f"{_called(task.names, tokens[place])} to {_called(task.names, tokens[place + 1])}"
        )
        place += 2
    start = _called(task.names, tokens[-1])
    times = "once" if task.hops == 1 else f"{task.hops} times"
    prompt = f"Arrows: {', '.join(said)}.\nStart at {start} and follow the arrows {times}.\nAnswer:"
    return Question(prompt, _SETS[task.hops], asked.answer - task.hops * task.names)


def _called(names: int, token: int) -> str:
    return _SETS[token // names][token % names]


def _brackets(asked: Asked) -> Question:
    types = asked.task.types
    spelled = _OPENING[:types] + _CLOSING[:types]
    word = "".join(spelled[token] for token in asked.tokens if token < 2 * types)
    prompt = f"Brackets: {' '.join(word)}\nWhich bracket closes the innermost one open?\nAnswer:"
    return Question(prompt, tuple(_CLOSING[:types]), asked.answer - types)


def _copy(asked: Asked) -> Question:
    symbols = asked.task.symbols
    shown = " ".join(
        _LETTERS[token] if token < symbols else "-"
        for token in asked.tokens
        if token != asked.task.asks
    )
    prompt = f"Letters: {shown}\nWhich letter is number {asked.turn + 1}?\nAnswer:"
    return Question(prompt, tuple(_LETTERS[:symbols]), asked.answer)


def _induction(asked: Asked) -> Question:
    symbols = asked.task.symbols
    # The stretch, and not the questions before the one that is asked.
    shown = [token for token in asked.tokens if token < symbols][:symbols]
    key = asked.tokens[-1]
    prompt = (
        f"Words: {' '.join(WORDS[token] for token in shown)}\n"
        f"Which word comes after {WORDS[key]}?\nAnswer:"
    )
    others = [token for token in range(symbols) if token != key]
    return Question(prompt, tuple(WORDS[token] for token in others), others.index(asked.answer))


def _functions(asked: Asked) -> Question:
    word = asked.tokens[1:]
    said = ", ".join(f"f({x}) = {y}" for x, y in zip(word[::2], word[1::2], strict=False))
    prompt = f"Modulo {asked.task.modulus}: {said}, f({word[-1]}) =\nAnswer:"
    return Question(prompt, tuple(map(str, range(asked.task.modulus))), asked.answer)


_PAIRS = (4, 8, 16, 32)
_HOPS = (1, 2, 3, 4)
_SYMBOLS = (8, 16, 32)

RECALL_FORMS: dict[str, Form] = {
    "recall": Form(
        "pairs",
        tuple(
            Level(n, RecallTask(pairs=n, keys=32, values=n, distinct_values=True), 3 * n)
            for n in _PAIRS
        ),
        _recall,
        turn=0,
    ),
    "chain": Form(
        "hops",
        tuple(Level(n, ChainTask(hops=n, queries=1), 16 * n + 1) for n in _HOPS),
        _chain,
    ),
    "brackets": Form(
        "brackets",
        tuple(Level(n, BracketsTask(depth=4), n + 4) for n in (8, 16, 32, 64)),
        _brackets,
        turn=0,
    ),
    "copy": Form(
        "tokens",
        tuple(Level(n, SelectiveCopyTask(), 8 + n) for n in (16, 32, 64, 128)),
        _copy,
        turn=None,
    ),
    "induction": Form(
        "words",
        tuple(Level(n, InductionTask(symbols=n, queries=1), n + 2) for n in _SYMBOLS),
        _induction,
    ),
    "functions": Form(
        "examples",
        tuple(Level(n, FunctionsTask(examples=n), 2 * n + 2) for n in (1, 2, 4)),
        _functions,
    ),
}
