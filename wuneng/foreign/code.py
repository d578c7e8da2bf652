"""Code that comes with a model is run only where the user has said so, never asked for on stdin."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from wuneng.foreign.regular import read_regular_text

__all__ = ["code_reference", "is_trusted", "refusal", "remote_code_trusted"]

#: Files in which transformers looks for ``auto_map``.
_FILES = ("config.json", "tokenizer_config.json")
_trusted: ContextVar[bool] = ContextVar("remote code is trusted", default=False)


def is_trusted() -> bool:
    """Whether models and tokenizers may bring code that is run here."""
    return _trusted.get()


@contextmanager
def remote_code_trusted(trusted: bool = True) -> Iterator[None]:
    """Let models and tokenizers that are loaded meanwhile run their own code."""
    token = _trusted.set(trusted)
    try:
        yield
    finally:
        _trusted.reset(token)


def code_reference(directory: Path) -> tuple[Path, str] | None:
    """The file of a directory that names code in ``auto_map``, and the code it names."""
    for name in _FILES:
        file = directory / name
        try:
            value = json.loads(read_regular_text(file))
        except (OSError, ValueError, RecursionError):
            continue
        for reference in _references(value.get("auto_map") if isinstance(value, dict) else None):
            return file, reference
    return None


def refusal(place: str | Path, field: str = "") -> str:
    """The message that the model or tokenizer at ``place`` would need its own code.

    Args:
        place: a directory, or a name on the hub.
        field: the recipe's field or the option that named it, for the beginning of the message.
    """
    found = code_reference(Path(place))
    where, code = found or (place, "")
    named = f" names {code} in auto_map," if code else " comes with"
    start = f"{field}: " if field else ""
    return (
        f"{start}{where}{named} code that would be run here. Nothing was run. Read it, and give "
        "--trust-remote-code if you trust it"
    )


def _references(auto_map: Any) -> Iterator[str]:
    values = auto_map.values() if isinstance(auto_map, Mapping) else [auto_map]
    for value in values:
        for reference in value if isinstance(value, list | tuple) else [value]:
            if isinstance(reference, str):
                yield reference
