"""The RWKV World tokenizer as an ordinary fast tokenizer.

World vocabularies are byte strings matched greedily, longest first. That is a regular language: a
pattern that spells the vocabulary as a trie matches exactly the longest token at each place, since
a token's bytes lead along one path only. So a splitter with this pattern, followed by a plain
look-up, is the tokenizer: it saves to ``tokenizer.json`` and loads with ``AutoTokenizer`` anywhere.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from wuneng.errors import ModelError, file_errors
from wuneng.foreign.regular import read_regular_text
from wuneng.model.pretrained import try_tokenizer

__all__ = ["END_OF_TEXT", "is_world_vocabulary", "read_vocabulary", "world_tokenizer"]

#: Id 0 spells nothing: World models end a text with it.
END_OF_TEXT = "<|endoftext|>"
_SPECIAL = set(r"\^$.|?*+()[]{}-/#&~")


def is_world_vocabulary(file: Path) -> bool:
    """Whether the file is named as RWKV's vocabulary files are."""
    return file.name.startswith("rwkv_vocab") and file.suffix == ".txt"


def read_vocabulary(file: Path) -> dict[bytes, int]:
    """The tokens of a World vocabulary file: ``id literal length`` a line.

    Raises:
        ModelError: with the line at which the file is not that.
    """
    try:
        lines = read_regular_text(file).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{file}: cannot be read: {error}") from None
    tokens: dict[bytes, int] = {}
    for number, line in enumerate(lines, start=1):
        try:
            index, rest = line.split(" ", 1)
            literal, length = rest.rsplit(" ", 1)
            value = ast.literal_eval(literal.strip())
            token = value.encode("utf-8") if isinstance(value, str) else bytes(value)
            if len(token) != int(length) or not token or token in tokens or int(index) < 1:
                raise ValueError
            tokens[token] = int(index)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise ModelError(
                f"{file}, line {number}: expected `id literal length`, got {line[:60]!r}"
            ) from None
    missing = [byte for byte in range(256) if bytes([byte]) not in tokens]
    if missing:
        raise ModelError(f"{file}: has no token for byte {missing[0]}; some texts have no spelling")
    return tokens


def world_tokenizer(file: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a World vocabulary file. ModelError when the file is not one."""
    letters = _byte_letters()
    tokens = read_vocabulary(file)
    vocabulary = {"".join(letters[b] for b in token): index for token, index in tokens.items()}
    vocabulary[END_OF_TEXT] = 0
    words = [word for word in vocabulary if word != END_OF_TEXT]
    # Numbers beyond 32 bits, words too long for a pattern, ...
    with file_errors(f"{file}: no tokenizer can be made of it", ModelError):
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=END_OF_TEXT))
        split: Any = pre_tokenizers.Split(Regex(_pattern(words)), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), split]
        )
        tokenizer.decoder = decoders.ByteLevel()
        made = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            eos_token=END_OF_TEXT,
            pad_token=END_OF_TEXT,
            clean_up_tokenization_spaces=False,
        )
        try_tokenizer(made)
    return made


def _byte_letters() -> list[str]:
    """The printable letter that byte-level tokenizers write for each byte."""
    alphabet = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in alphabet]
    letters = {byte: chr(byte) for byte in alphabet}
    letters |= {byte: chr(256 + number) for number, byte in enumerate(others)}
    return [letters[byte] for byte in range(256)]


def _pattern(words: list[str]) -> str:
    """A regular expression that matches the longest of ``words`` at a place."""
    root: dict[str, Any] = {}
    for word in words:
        node = root
        for letter in word:
            node = node.setdefault(letter, {})
        node[""] = {}
    return _node_pattern(root)


def _node_pattern(node: dict[str, Any]) -> str:
    """What may follow in the trie; optional where a word ends here. Depth: the longest word."""
    ends = [letter for letter, below in node.items() if letter and set(below) == {""}]
    goes_on = [letter for letter, below in node.items() if letter and set(below) != {""}]
    choices = [_escaped(letter) + _node_pattern(node[letter]) for letter in goes_on]
    if ends:
        choices.append(f"[{''.join(map(_escaped, ends))}]")
    if not choices:
        return ""
    return f"(?:{'|'.join(choices)}){'?' if '' in node else ''}"


def _escaped(letter: str) -> str:
    return f"\\{letter}" if letter in _SPECIAL else letter
