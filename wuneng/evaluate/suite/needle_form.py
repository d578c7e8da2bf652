"""The needle in words: a password among sentences, at lengths in tokens of the model's tokenizer.

Every sentence of the haystack names a word that could be the password, and all of them as often, so
that the words that occur tell nothing; how deep the password's own sentence lies is random.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from wuneng.evaluate.suite.question import Asked, Form, Level, Question
from wuneng.evaluate.suite.recall_forms import WORDS
from wuneng.recipe.task_settings import NeedleTask

__all__ = ["NEEDLE_LENGTHS", "needle_form"]

#: Where nothing else is asked for.
NEEDLE_LENGTHS = (1024, 4096, 16384, 65536)
_VALUES = 16
_SENTENCES = (
    "In the morning somebody asked for the {}.",
    "They talked a long while about the {}.",
    "Nobody at the market had seen the {}.",
    "On the way home she thought of the {} again.",
    "He wrote a letter that mentioned the {}.",
)


def needle_form(lengths: Sequence[int], count_tokens: Callable[[str], int]) -> Form:
    """Needles in haystacks such that each prompt has at most so many tokens, and nearly as many.

    Args:
        lengths: tokens of prompts; too short ones hold a haystack of as few sentences as words.
        count_tokens: of a text.
    """
    return Form(
        "tokens",
        tuple(
            Level(n, NeedleTask(values=_VALUES), 2 + _sentences(n, count_tokens)) for n in lengths
        ),
        _needle,
        items=20,
        fewshot=0,
    )


def _sentences(tokens: int, count_tokens: Callable[[str], int]) -> int:
    """Sentences of which prompts have at most ``tokens`` tokens, and nearly as many."""
    few, many = _VALUES, 33 * _VALUES
    spelled = [count_tokens(_told([WORDS[i % _VALUES] for i in range(n)], 0)) for n in (few, many)]
    each = (spelled[1] - spelled[0]) / (many - few)
    around = spelled[0] - few * each
    # Words are there equally often but for one incomplete round, by which prompts differ.
    return max(_VALUES, int((tokens - around - _VALUES) / each))


def _needle(asked: Asked) -> Question:
    keys = asked.task.needles
    body = asked.tokens[:-keys]
    place = next(i for i, token in enumerate(body) if token < keys)
    words = [WORDS[token - keys] for token in body if token >= keys]
    return Question(_told(words, place), WORDS[:_VALUES], asked.answer - keys)


def _told(words: Sequence[str], place: int) -> str:
    said = [_SENTENCES[(i * 7) % len(_SENTENCES)].format(word) for i, word in enumerate(words)]
    said[place] = f"The password is {words[place]}."
    return f"{' '.join(said)}\nWhat is the password?\nAnswer:"
