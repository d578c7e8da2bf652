"""The ids of a tokenizer: a vocabulary may leave ids out, so its size says nothing of the highest.

What a text becomes indexes the embedding and every table by token; both are as long as the highest
id asks for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wuneng.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["HIGHEST_ID", "check_ids", "check_stored_ids", "names_by_id", "vocabulary_size"]

HIGHEST_ID = 1 << 24
"""Of a token. The largest vocabularies have a few hundred thousand."""
_LONG = re.compile(rb"\d{8}")


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


def check_stored_ids(file: Path) -> None:
    """The same for a ``tokenizer.json`` that is not yet loaded: some releases of tokenizers make
    room for as many tokens as the highest id says, and end the process where there is none.

    Raises:
        ModelError: an id beyond any vocabulary. What else is wrong with the file, or that there is
            none, is for those to say who load it.
    """
    with suppress(OSError, ValueError, RecursionError):
        content = file.read_bytes()
        if not _LONG.search(content):  # most files: they need not be read twice
            return
        for name, number in _stored(json.loads(content)):
            if number > HIGHEST_ID:
                raise ModelError(
                    f"{file}: token ids go up to {HIGHEST_ID:,}, got {number:,} for {name[:40]!r}"
                )


def _stored(found: Any) -> Iterator[tuple[str, int]]:
    """Every id in the vocabulary and among added tokens of a file of any shape, with its name."""
    if not isinstance(found, dict):
        return
    model, added = found.get("model"), found.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    named = list(vocabulary.items()) if isinstance(vocabulary, dict) else []
    if isinstance(added, list):
        named += [(str(x.get("content")), x.get("id")) for x in added if isinstance(x, dict)]
    yield from ((name, number) for name, number in named if type(number) is int)
