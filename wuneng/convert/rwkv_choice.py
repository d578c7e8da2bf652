"""Which tokenizer a converted RWKV-7 gets: given, found beside the weights, or none, and then said.

A ``.pth`` holds weights alone. Its tokenizer is the World vocabulary, a text file that RWKV-LM and
the ``rwkv`` package bring along, or none at all: byte-level models read bytes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from wuneng.convert.rwkv_tokenizer import is_world_vocabulary, world_tokenizer
from wuneng.convert.source import Located
from wuneng.data.tokenizer import byte_tokenizer
from wuneng.errors import ModelError, nearest
from wuneng.foreign import regular_file_inside
from wuneng.model.token_ids import vocabulary_size
from wuneng.records.places import expanded

__all__ = ["BYTES", "WORLD", "ChosenTokenizer", "choose_tokenizer"]

BYTES, WORLD = "bytes", "world"
_WORLD_SIZE = 65536
_BYTE_SIZES = range(256, 513)  # rows are sometimes rounded up


@dataclass(frozen=True)
class ChosenTokenizer:
    """Where tokenizer files come from.

    Attributes:
        directory: they are copied from there; None where there is none.
        write: makes those that do not exist yet, in the directory that it is given.
        missing: what to tell about a model that stays without; None where it has one.
    """

    directory: Path | None
    write: Callable[[Path], None]
    missing: str | None = None


def choose_tokenizer(located: Located, given: str | None, vocab_size: int) -> ChosenTokenizer:
    """The tokenizer of an RWKV-7.

    Args:
        given: ``bytes``, ``world``, a World vocabulary file or a directory with a tokenizer; None
            looks beside the weights.

    Raises:
        InputError: it begins with a ``~`` that stands for no home directory.
        ModelError: it does not exist or does not fit ``vocab_size`` tokens.
    """
    beside = located.path.parent if located.is_file else located.path
    if given == BYTES:
        return _made(_bytes(vocab_size))
    if given == WORLD:
        return _world(_find_world(beside), vocab_size)
    if given is not None:
        path = expanded(given, "--tokenizer")
        if not path.exists():
            hint = nearest(given, (BYTES, WORLD))
            raise ModelError(
                f"--tokenizer {given}: no such file or directory; expected a World vocabulary "
                f"file, a directory with a tokenizer, {BYTES} or {WORLD}.{hint}"
            )
        if path.is_dir():
            return ChosenTokenizer(path, _nothing)
        return _world(path, vocab_size)
    if not located.is_file and (beside / "tokenizer.json").is_file():
        return ChosenTokenizer(beside, _nothing)
    found = _vocabularies(beside)
    if found:
        return _world(found[0], vocab_size)
    directory = None if located.is_file else beside
    return ChosenTokenizer(directory, _nothing, _missing(located, vocab_size))


def _missing(located: Located, vocab_size: int) -> str:
    if vocab_size in _BYTE_SIZES:
        likely = f"its {vocab_size} tokens look like bytes: --tokenizer {BYTES}"
    elif vocab_size == _WORLD_SIZE:
        likely = f"its {vocab_size:,} tokens look like the World vocabulary: --tokenizer {WORLD}"
    else:
        likely = f"--tokenizer {BYTES}, {WORLD}, or the path of its vocabulary file or directory"
    return (
        f"{located.label} brings no tokenizer, so the converted model reads token ids and not "
        f"text. Convert it again with one ({likely})"
    )


def _bytes(vocab_size: int) -> Any:
    if vocab_size not in _BYTE_SIZES:
        raise ModelError(
            f"--tokenizer {BYTES}: expected a model of 256 bytes (and perhaps an end of text), "
            f"this one has {vocab_size:,} tokens"
        )
    return byte_tokenizer(end_is_zero=vocab_size == 256)


def _world(file: Path, vocab_size: int) -> ChosenTokenizer:
    tokenizer = world_tokenizer(file)
    needed = vocabulary_size(tokenizer)
    if needed > vocab_size:
        raise ModelError(f"{file}: {needed} tokens, the model has only {vocab_size}")
    return _made(tokenizer)


def _find_world(beside: Path) -> Path:
    """The World vocabulary file beside the weights, or in the ``rwkv`` package."""
    package = importlib.util.find_spec("rwkv")
    places = [beside, *map(Path, (package and package.submodule_search_locations) or ())]
    found = [file for place in places for file in _vocabularies(place)]
    if not found:
        looked = ", ".join(map(str, places))
        raise ModelError(
            f"--tokenizer {WORLD}: no rwkv_vocab*.txt in {looked}. The file comes with RWKV-LM and "
            "with `pip install rwkv`; or name it: --tokenizer path/to/rwkv_vocab_v20230424.txt"
        )
    return found[-1]


def _vocabularies(directory: Path) -> list[Path]:
    found = [file for file in sorted(directory.glob("*.txt")) if is_world_vocabulary(file)]
    return [regular_file_inside(file, directory) for file in found]


def _made(tokenizer: Any) -> ChosenTokenizer:
    return ChosenTokenizer(None, partial(_save, tokenizer))


def _nothing(_: Path) -> None:
    """No file has to be made."""


def _save(tokenizer: Any, directory: Path) -> None:
    tokenizer.save_pretrained(directory)
