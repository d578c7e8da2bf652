"""What travels with the weights: tokenizer, chat template, generation settings, licence texts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from wuneng.convert.probe import PARAGRAPH
from wuneng.errors import ModelError, RunError
from wuneng.evaluate.loading import load_tokenizer
from wuneng.foreign import regular_file_inside
from wuneng.records import disk_errors

__all__ = ["check_same_tokens", "copy_companions"]

_NAMES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
    "generation_config.json",
)
_PATTERNS = ("LICENSE*", "NOTICE*", "USE_POLICY*", "additional_chat_templates/*.jinja")


def copy_companions(source: Path, destination: Path) -> list[str]:
    """Copy the files as they are; returns their names. Code (``.py``) is never copied.

    Raises:
        ModelError: one is a link that leads out of ``source``, or cannot be read.
        DiskError: the disk is full or refuses.
    """
    found = [source / name for name in _NAMES if os.path.lexists(source / name)]
    found += [path for pattern in _PATTERNS for path in sorted(source.glob(pattern))]
    found = [path for path in found if path.suffix != ".py" and not path.is_dir()]
    for path in found:
        target = destination / path.relative_to(source)
        try:
            data = regular_file_inside(path, source).read_bytes()
        except OSError as error:
            raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    return [str(path.relative_to(source)) for path in found]


def check_same_tokens(source: Path, destination: Path) -> Any:
    """The destination's tokenizer, or None without one.

    Raises:
        RunError: it splits text otherwise than the source's.
        ModelError: a tokenizer is broken.
    """
    mine = load_tokenizer(destination)
    if mine is None:
        return None
    theirs = load_tokenizer(source)
    if theirs is not None:
        expected, got = (list(t(PARAGRAPH)["input_ids"]) for t in (theirs, mine))
        if expected != got:
            raise RunError(
                f"the converted model's tokenizer gives other ids than that of {source} "
                f"({len(got)} against {len(expected)} tokens on the test text). Nothing was "
                "written."
            )
    return mine
