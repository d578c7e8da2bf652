"""Where a model is from and under which licence, as far as its directory says.

A card's metadata is somebody else's YAML: what is taken over is an identifier, or it is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wuneng.errors import ModelError, RecipeError
from wuneng.foreign import regular_file_inside
from wuneng.foreign.regular import open_regular
from wuneng.hub.papers import licence_files
from wuneng.recipe.source import parse_yaml

__all__ = ["REPOSITORY", "Licence", "Origin", "origin_of"]

#: ``owner/name`` on the hub.
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_CARD = "README.md"
_LARGEST_CARD = 1 << 20
_METADATA = re.compile(r"\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", re.DOTALL)
_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][\w .+-]{0,79}", re.ASCII)
_LINK = re.compile(r"https://[\w./~%?=&#+:@-]{1,300}|[\w.-]{1,100}", re.ASCII)


@dataclass(frozen=True)
class Licence:
    """What a card's metadata say of it; None: nothing.

    Attributes:
        identifier: as the hub lists it, ``apache-2.0``; ``other`` has a name and a link.
        link: a page, or a file of the repository.
    """

    identifier: str | None = None
    name: str | None = None
    link: str | None = None


@dataclass(frozen=True)
class Origin:
    """A model that another was made of.

    Attributes:
        name: its repository on the hub, or the name of its directory or file: never a path.
        base_models: repositories on the hub that it is, or is from.
    """

    name: str
    base_models: tuple[str, ...] = ()
    licence: Licence = Licence()


def origin_of(place: Path, label: str) -> Origin:
    """What the directory (or lone file) ``place`` says of itself.

    Args:
        label: how the user named it.
    """
    repository = _repository(place) or _repository(Path(label))
    if not place.is_dir():
        if repository is None:
            return Origin(Path(label).name)  # what else lies in its directory may not concern it
        place = place.parent
    said = _metadata(place)
    given = said.get("base_model")
    bases = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    known = [base for base in bases if isinstance(base, str) and REPOSITORY.fullmatch(base)]
    found = (repository,) if repository else tuple(dict.fromkeys(known))[:8]
    name = repository or (label if label in found else Path(label).name or place.name)
    return Origin(name, found, _licence(said, place))


def _repository(place: Path) -> str | None:
    """``owner/name`` of a snapshot in Hugging Face's cache."""
    for parent in (place, *place.parents):
        if parent.parent.name == "snapshots" and parent.parent.parent.name.startswith("models--"):
            name = parent.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
            return name if REPOSITORY.fullmatch(name) else None
    return None


def _licence(said: Mapping[str, Any], place: Path) -> Licence:
    identifier = _matching(_IDENTIFIER, said.get("license"))
    if identifier is not None:
        name, link = said.get("license_name"), said.get("license_link")
        return Licence(identifier, _matching(_NAME, name), _matching(_LINK, link))
    files = licence_files(place)
    return Licence("other", "see-the-file", files[0]) if files else Licence()


def _matching(pattern: re.Pattern[str], value: Any) -> str | None:
    return value if isinstance(value, str) and pattern.fullmatch(value) else None


def _metadata(directory: Path) -> Mapping[str, Any]:
    """The block of YAML that README.md begins with; empty where there is none that can be read."""
    try:
        with open_regular(regular_file_inside(directory / _CARD, directory)) as file:
            text = file.read(_LARGEST_CARD).decode("utf-8", "replace")
        block = _METADATA.match(text)
        data = parse_yaml(block.group(1), _CARD).data if block else None
    except (OSError, ModelError, RecipeError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
