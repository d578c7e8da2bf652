"""Text to tokens, a document at a time, with the marks that begin and end a document.

A document becomes ``[start] text...`` when the tokenizer has one mark for both ends (as GPT-2's
``<|endoftext|>``), and ``[start] text... [end]`` when it has two (as Llama's ``<s>`` and ``</s>``).
The first token of the text is thus always predicted from something, and so is the end.

Text that happens to contain the name of a special token stays text, and is spelled out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wuneng.data.spelling import spell
from wuneng.data.tokenizer import byte_alphabet
from wuneng.errors import DataError, file_errors
from wuneng.model.token_ids import vocabulary_size

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["Encoder", "UnencodableError"]

# End marks that published tokenizer.json files have without declaring them.
_KNOWN_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")

# Documents above this are cut into pieces before they are tokenised, which bounds memory.
_PIECE_CHARACTERS = 1 << 20


class UnencodableError(DataError):
    """The tokenizer fails over a text: that of the document numbered ``document``, from 1."""

    def __init__(self, message: str, document: int) -> None:
        super().__init__(message)
        self.document = document


class Encoder:
    """Turns documents into token arrays with ``tokenizer``; DataError if it has no end mark."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, field: str = "data.tokenizer") -> None:
        from tokenizers import Tokenizer

        self.tokenizer = tokenizer
        self.vocab_size = vocabulary_size(tokenizer)
        self.dtype = np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)
        self.start, self.end = _marks(tokenizer, field)
        self.spelling = spell(tokenizer, self.vocab_size)
        serialized: str = tokenizer.backend_tokenizer.to_str()
        identity = f"{serialized}\0{self.start}\0{self.end}"
        self.digest = hashlib.sha256(identity.encode("utf-8")).hexdigest()
        """Identifies the tokens that a text becomes; part of every token cache's key."""
        # A copy, so that nobody else's padding, truncation or special tokens reach the corpus.
        self._backend = Tokenizer.from_str(serialized)
        self._backend.no_padding()
        self._backend.no_truncation()
        self._backend.encode_special_tokens = True
        self.spells_bytes = _is_byte_tokenizer(tokenizer)
        """Whether encoding is a copy of the text's bytes."""

    @property
    def two_marks(self) -> bool:
        """Whether documents end with a mark of their own."""
        return self.start != self.end

    def encode(self, documents: Sequence[str]) -> list[NDArray[np.unsignedinteger]]:
        """One array ``[tokens]`` of ``self.dtype`` per document, marks included."""
        if self.spells_bytes:
            return [
                self.marked(np.frombuffer(text.encode("utf-8"), np.uint8)) for text in documents
            ]
        pieces = [list(self.pieces(document)) for document in documents]
        everything = [piece for parts in pieces for piece in parts]
        with file_errors("the tokenizer cannot encode the text", DataError):
            found = self._backend.encode_batch_fast(everything, add_special_tokens=False)
        encodings = iter(found)
        return [
            self.marked(np.concatenate([np.array(next(encodings).ids, np.int64) for _ in parts]))
            for parts in pieces
        ]

    def pieces(self, document: str) -> Iterator[str]:
        """What of a document is tokenised at a time: all of it, unless it is very long."""
        return _pieces(document)

    def encode_pieces(self, pieces: Sequence[tuple[int, str]]) -> list[NDArray[np.unsignedinteger]]:
        """The tokens of each text without marks, by one thread alone.

        UnencodableError has the number that stands beside the text.
        """
        found = []
        for number, text in pieces:
            try:
                with file_errors("the tokenizer cannot encode the text", DataError):
                    encoding = self._backend.encode_batch_fast([text], add_special_tokens=False)[0]
            except DataError as error:
                raise UnencodableError(str(error), number) from None
            found.append(np.array(encoding.ids, self.dtype))
        return found

    def marked(self, text: NDArray[np.integer]) -> NDArray[np.unsignedinteger]:
        """The tokens of a document's text between their marks, as ``self.dtype``."""
        marked = np.empty(1 + len(text) + self.two_marks, dtype=self.dtype)
        marked[0] = self.start
        marked[1 : 1 + len(text)] = text
        if self.two_marks:
            marked[-1] = self.end
        return marked


def _marks(tokenizer: PreTrainedTokenizerFast, field: str) -> tuple[int, int]:
    """Ids of the marks that begin and end a document."""
    vocabulary = tokenizer.get_vocab()
    put_in_front: list[int] = tokenizer("", add_special_tokens=True)["input_ids"][:1]
    known = [vocabulary[name] for name in _KNOWN_ENDS if name in vocabulary]
    candidates = [tokenizer.eos_token_id, *known, tokenizer.bos_token_id, *put_in_front]
    end = next((candidate for candidate in candidates if candidate is not None), None)
    if end is None:
        raise DataError(
            f"{field}: the tokenizer {tokenizer.name_or_path or ''!r} has no end-of-text token; "
            f"expected an eos_token, or one of {', '.join(_KNOWN_ENDS)} in its vocabulary"
        )
    return (put_in_front[0] if put_in_front else end), end


def _is_byte_tokenizer(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether token i is byte i and nothing else is ever produced: no merges can apply."""
    vocabulary = tokenizer.get_vocab()
    if tokenizer.backend_tokenizer.normalizer is not None or len(vocabulary) != 257:
        return False
    return all(vocabulary.get(character) == byte for byte, character in enumerate(byte_alphabet()))


def _pieces(document: str) -> Iterator[str]:
    """Cut a very long document behind single line ends that no blank stands beside.

    There a pre-tokenizer of the GPT-2 family cuts as well, so the tokens stay the same.
    """
    start = 0
    while len(document) - start > _PIECE_CHARACTERS:
        cut = document.rfind("\n", start + 1, start + _PIECE_CHARACTERS) + 1
        while cut and (document[cut].isspace() or document[cut - 2].isspace()):
            cut = document.rfind("\n", start + 1, cut - 1) + 1
        cut = cut or start + _PIECE_CHARACTERS
        yield document[start:cut]
        start = cut
    yield document[start:]
