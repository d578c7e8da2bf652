"""Tokenizers: the built-in byte-level one, any other by path or name, or a BPE of the corpus.

All of them are transformers' fast tokenizers, so that they are saved beside a model and come back
through ``AutoTokenizer.from_pretrained``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from wuneng.errors import DataError, ModelError, nearest, reason, shortened
from wuneng.hub.connection import NAME_PATIENCE, NAME_WAITS, asked_again
from wuneng.records import verify

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = [
    "END_OF_TEXT",
    "byte_alphabet",
    "byte_tokenizer",
    "check_tokenizer",
    "load_tokenizer",
    "train_byte_pair_tokenizer",
]

#: The special token that separates documents in the tokenizers made here.
END_OF_TEXT = "<|endoftext|>"

#: A BPE is learned from this much text at most: its merges no longer move, its memory would.
_BYTE_PAIR_TEXT = 100_000_000

#: What transformers reads of a directory for a tokenizer.
_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "config.json"),
    "chat_template.jinja",
)

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")

# Trained on pieces, because one enormous document would be one enormous list of words.
_PIECE_CHARACTERS = 1 << 16


def byte_alphabet() -> list[str]:
    """The character that stands for each byte value in a byte-level vocabulary, as in GPT-2.

    Printable Latin-1 characters stand for themselves; the other 68 bytes (control characters,
    blanks, the soft hyphen) take the characters from U+0100 on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    substitutes = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(substitutes)) for byte in range(256)]


def byte_tokenizer(*, end_is_zero: bool = False) -> PreTrainedTokenizerFast:
    """Token i is byte i, and 256 is ``<|endoftext|>``: 257 tokens, any UTF-8 text round-trips.

    ``end_is_zero``: 256 tokens for a model without a row more; byte 0 is the end of a text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {character: byte for byte, character in enumerate(byte_alphabet())}
    unknown = None
    if end_is_zero:  # byte 0 has no letter then, and what is not known becomes token 0
        vocabulary = {END_OF_TEXT: 0, **{c: byte for c, byte in vocabulary.items() if byte}}
        unknown = END_OF_TEXT
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return _wrapped(tokenizer)


def train_byte_pair_tokenizer(
    documents: Iterable[str], vocab_size: int, field: str
) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE of exactly ``vocab_size`` tokens; the same documents give the same.

    The first 100 million characters are used. Raises DataError, naming ``field``, when the size is
    below 257 (the bytes and the end token) or above what the text has pairs for.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < 257:
        raise DataError(f"{field}: expected at least 257 (256 bytes and the end), got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=1,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=byte_alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_pieces(documents), trainer)
    learned = tokenizer.get_vocab_size()
    if learned < vocab_size:
        raise DataError(
            f"{field}: the corpus has pairs for {learned} tokens only; "
            f"expected at most {learned}, got {vocab_size}"
        )
    return _wrapped(tokenizer)


def load_tokenizer(name: str, field: str = "data.tokenizer") -> PreTrainedTokenizerFast:
    """``bytes``, a tokenizer directory or ``tokenizer.json``, or a name on the Hugging Face hub.

    Raises DataError, naming ``field``, when there is none or it has no fast form, and ModelError
    when it brings code that the user has not said to trust.
    """
    if name == "bytes":
        return byte_tokenizer()
    from transformers import PreTrainedTokenizerFast

    from wuneng.model.pretrained import load_any_tokenizer, try_tokenizer
    from wuneng.model.token_ids import check_stored_ids

    try:
        path = Path(name).expanduser()
        there = path.exists()
    except (OSError, RuntimeError) as error:
        raise DataError(f"{field}: {shortened(name)!r}: {reason(error)}") from None
    if not there and not _HUB_NAME.fullmatch(name):
        raise DataError(f"{field}: no tokenizer directory or file {name!r}")
    try:
        if path.is_file():
            check_stored_ids(path)
            found = PreTrainedTokenizerFast(tokenizer_file=str(path))
            try_tokenizer(found)
            return found
        local = path.is_dir()
        place, waits = (path, ()) if local else (name, NAME_WAITS)
        loaded = asked_again(
            lambda: load_any_tokenizer(place, field, local=local), waits, NAME_PATIENCE
        )
    except (ModelError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tokenizers raises bare Exception, or panics in Rust
        raise DataError(_not_loaded(name, path, field, error)) from None
    if not isinstance(loaded, PreTrainedTokenizerFast):
        raise DataError(f"{field}: the tokenizer {name!r} has no fast form (no tokenizer.json)")
    return loaded


def check_tokenizer(name: str, skip: str = "--no-verify") -> None:
    """Compare the files of a tokenizer with the checksums beside them, where there are some.

    Args:
        name: as ``load_tokenizer`` takes it; what is no directory or file here has none.
        skip: the option of the command that leaves this check out.

    Raises:
        DamagedError: a file is not what was written.
    """
    try:
        path = Path(name).expanduser()
        found = path.exists()
    except (OSError, RuntimeError, ValueError):
        return  # whoever loads it says so
    if found and path.is_dir():
        verify(path, _FILES, skip=skip)
    elif found:
        verify(path.parent, [path.name], skip=skip)


def _wrapped(tokenizer: object) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def _pieces(documents: Iterable[str]) -> Iterator[str]:
    left = _BYTE_PAIR_TEXT
    for document in documents:
        for start in range(0, min(len(document), left), _PIECE_CHARACTERS):
            yield document[start : min(start + _PIECE_CHARACTERS, left)]
        left -= len(document)
        if left <= 0:
            return


def _not_loaded(name: str, path: Path, field: str, error: BaseException) -> str:
    why = shortened(" ".join(str(error).split()) or type(error).__name__, 200)
    if path.is_file():
        return f"{field}: {name} is not a tokenizer file: {why}"
    if path.is_dir():
        return f"{field}: directory {name} holds no tokenizer that can be loaded: {why}"
    near = nearest(name, ["bytes"])
    return (
        f"{field}: {name!r} is neither 'bytes' nor a tokenizer directory or file, and as a name on "
        f"the Hugging Face hub it cannot be had ({why}).{near}"
    )
