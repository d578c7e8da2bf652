"""Settings of ``generate()`` for a loaded model: ours, and of its own the end of text alone.

A generation_config.json may ask for beams, for a stop after some seconds or for a cache that a
model cannot use. What is measured and what the command's options say would then depend on a file.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from wuneng.errors import ModelError, shortened
from wuneng.foreign.regular import read_regular_text

__all__ = ["own_settings"]

_FIELD = "eos_token_id"


def own_settings(path: Path, model: Any) -> GenerationConfig:
    """What ``model``, loaded from ``path``, writes by where a call says nothing else.

    Raises:
        ModelError: its end of text is no token of the model, with the file that says so.
    """
    stored = getattr(model.generation_config, _FIELD, None)
    rows = model.get_input_embeddings().weight.shape[0]
    for index in stored if isinstance(stored, list | tuple) else [stored]:
        # bool is an int for Python, and a mistake in a file
        if index is not None and (type(index) is not int or not 0 <= index < rows):
            raise ModelError(
                f"{_said_in(path)}: {_FIELD}: expected a token of the model, 0 to {rows - 1}, or a "
                f"list of them, got {shortened(repr(stored))}"
            )
    return GenerationConfig(eos_token_id=stored)


def _said_in(path: Path) -> Path:
    """transformers takes the field from config.json where no generation_config.json has it."""
    file = path / "generation_config.json"
    with suppress(OSError, ValueError, TypeError, RecursionError):
        if _FIELD in json.loads(read_regular_text(file)):
            return file
    return path / "config.json"
