"""What travels with the weights: tokenizer, chat template, generation settings, licence texts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from wuneng.convert.probe import PARAGRAPH
from wuneng.errors import RunError
from wuneng.evaluate.loading import load_tokenizer, run_of
from wuneng.hub.papers import copy_file, copy_papers

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
_PATTERNS = ("additional_chat_templates/*.jinja",)


def copy_companions(source: Path | None, model: Path, destination: Path) -> list[str]:
    """Copy the files as they are; returns their names there. Code (``.py``) is never copied.

    The model's card is kept under another name, unless it is a run's, which is written anew.

    Args:
        source: where the tokenizer is; None: there is none.
        model: the directory or file of the weights, whose licence and card come along.

    Raises:
        ModelError: one is a link that leads out of its directory, or cannot be read.
        DiskError: the disk is full or refuses.
    """
    copied = []
    if model.is_dir():
        copied += copy_papers(model, destination, card=run_of(model) is None)
    if source is None:
        return copied
    found = [source / name for name in _NAMES if os.path.lexists(source / name)]
    found += [path for pattern in _PATTERNS for path in sorted(source.glob(pattern))]
    names = [str(path.relative_to(source)) for path in found if not path.is_dir()]
    for name in names:
        copy_file(source / name, source, destination / name)
    if source != model:
        copied += copy_papers(source, destination, card=False)
    return names + copied


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
