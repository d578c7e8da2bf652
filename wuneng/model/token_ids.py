"""The ids of a tokenizer: a vocabulary may leave ids out, so its size says nothing of the highest.

What a text becomes indexes the embedding and every table by token; both are as long as the highest
id asks for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wuneng.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["HIGHEST_ID", "check_ids", "names_by_id", "vocabulary_size"]

HIGHEST_ID = 1 << 24
"""Of a token. The largest vocabularies have a few hundred thousand."""


def names_by_id(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Every token id that a text can become, and its name.

    The marks that a template puts around a text carry ids of their own, which need not be in the
    vocabulary.
    """
    marks: list[int] = tokenizer("", add_special_tokens=True)["input_ids"]
    found = dict.fromkeys(marks, "a mark without a name")
    found.update((index, token.content) for index, token in tokenizer.added_tokens_decoder.items())
    return found | {index: token for token, index in tokenizer.get_vocab().items()}


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows that an embedding needs: one more than the highest id."""
    return max(names_by_id(tokenizer), default=-1) + 1


def check_ids(tokenizer: PreTrainedTokenizerBase) -> None:
    """ModelError for an id beyond any vocabulary, up to which tokenizers would count."""
    names = names_by_id(tokenizer)
    highest = max(names, default=0)
    if highest > HIGHEST_ID:
        raise ModelError(
            f"{tokenizer.name_or_path or 'the tokenizer'}: token ids go up to {HIGHEST_ID:,}, "
            f"got {highest:,} for {names[highest][:40]!r}"
        )
