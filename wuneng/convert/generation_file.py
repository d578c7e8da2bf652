"""The generation settings that a converted model cannot follow are left out of its file.

Its cache is the hybrid one, and a recurrent state cannot take tokens back. A source may ask for a
cache of another kind, or for drafts that are checked and cropped; ``generate()`` of the converted
model would stop over such a file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wuneng.errors import shortened
from wuneng.model.call_arguments import CACHE_KINDS
from wuneng.records import write_json

__all__ = ["leave_out_unfit"]

_FILE = "generation_config.json"
_DRAFTS = ("prompt_lookup_num_tokens", "assistant_early_exit")


def leave_out_unfit(directory: Path) -> str | None:
    """Rewrite the file in ``directory`` where it has to be; a remark on what went, or None.

    A file that is missing or no settings stays: who loads the model says what is wrong with it.
    """
    try:
        settings = json.loads((directory / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    unfit = _unfit(settings) if isinstance(settings, dict) else []
    if not unfit:
        return None
    said = ", ".join(f"{name} {shortened(repr(settings[name]))}" for name in unfit)
    write_json(directory / _FILE, {n: v for n, v in settings.items() if n not in unfit})
    return f"{_FILE}: left out {said}, which a recurrent state cannot follow"


def _unfit(settings: dict[str, Any]) -> list[str]:
    names = [name for name in _DRAFTS if settings.get(name) is not None]
    kind = settings.get("cache_implementation")
    if not (kind is None or isinstance(kind, str)) or kind not in CACHE_KINDS:
        names += [n for n in ("cache_implementation", "cache_config") if n in settings]
    return names
