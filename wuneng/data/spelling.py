"""How many UTF-8 bytes of text each token spells: the denominator of bits per byte."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from wuneng.data.tokenizer import byte_alphabet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["Spelling", "spell"]

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Spelling:
    """What the tokens of a vocabulary spell, by token id."""

    def __init__(self, spelled: dict[int, bytes], vocab_size: int) -> None:
        self.lengths = np.zeros(vocab_size, dtype=np.int64)
        """``[vocab_size]`` UTF-8 bytes; 0 for special tokens and ids that are no token."""
        self.ends_line = np.zeros(vocab_size, dtype=bool)
        """``[vocab_size]`` whether the token's text ends with a line end."""
        for index, text in spelled.items():
            self.lengths[index] = len(text)
            self.ends_line[index] = text.endswith(b"\n")


def spell(tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> Spelling:
    """The spelling of a whole vocabulary, whose ids are below ``vocab_size``.

    Exact for byte-level and byte-fallback vocabularies. A tokenizer that changes the text (a blank
    put in front, letters folded) spells a few bytes more or less than the document has; packing
    corrects the sum per document, where the true count is known.
    """
    backend = tokenizer.backend_tokenizer
    added = {
        index: (b"" if token.special else token.content.encode("utf-8"))
        for index, token in tokenizer.added_tokens_decoder.items()
    }
    added.update((index, b"") for index in tokenizer.all_special_ids)
    spell_one = _speller(_decoder_kinds(backend))
    spelled = {
        index: added[index] if index in added else spell_one(token)
        for token, index in backend.get_vocab().items()
    }
    return Spelling(spelled, vocab_size)


def _decoder_kinds(backend: Any) -> set[str]:
    decoder = json.loads(backend.to_str()).get("decoder") or {}
    return {decoder.get("type", ""), *(part["type"] for part in decoder.get("decoders", []))}


def _speller(kinds: set[str]) -> Any:
    """The function from a token's name in the vocabulary to the bytes it spells."""
    if "ByteLevel" in kinds:
        values = {character: byte for byte, character in enumerate(byte_alphabet())}
        return lambda token: bytes(values.get(character, 0x3F) for character in token)
    if "WordPiece" in kinds:
        return lambda token: token.removeprefix("##").encode("utf-8")
    return _sentence_piece_bytes


def _sentence_piece_bytes(token: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(token)
    if byte:
        return bytes([int(byte[1], 16)])
    return token.replace("\u2581", " ").encode("utf-8")
