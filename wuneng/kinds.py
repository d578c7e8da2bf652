"""Kinds of state heads and of middle heads: their names, and their classes.

A kind is one file in ``wuneng/layers/state`` or ``wuneng/layers/middle``, named as the kind, whose
class :func:`register` names too. Whoever looks a kind up finds the file; nothing else lists it. A
kind of somebody else's package registers itself when it is imported. Listing the names imports
nothing: recipes are read without torch.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from wuneng.errors import nearest

__all__ = ["check_kind", "kind_names", "load_kind", "register"]

Room = Literal["state", "middle"]
_PACKAGES: dict[Room, str] = {"state": "wuneng.layers.state", "middle": "wuneng.layers.middle"}
_REGISTERED: dict[Room, dict[str, type]] = {"state": {}, "middle": {}}
C = TypeVar("C", bound=type)


def register(room: Room, name: str) -> Callable[[C], C]:
    """A decorator: the class that it stands over is the kind ``name``.

    Raises:
        ValueError: another class has that name.
    """

    def remember(kind: C) -> C:
        if name in _files(room) and kind.__module__ != _module_of(room, name):
            raise ValueError(f"{room} kind {name!r} is {_module_of(room, name)} already")
        known = _REGISTERED[room].get(name)
        if known is not None and known.__qualname__ != kind.__qualname__:
            raise ValueError(f"{room} kind {name!r} is {known.__qualname__} already")
        _REGISTERED[room][name] = kind
        return kind

    return remember


def kind_names(room: Room) -> tuple[str, ...]:
    """Every kind there is, in alphabetical order."""
    return tuple(sorted({*_files(room), *_REGISTERED[room]}))


def check_kind(room: Room, name: str) -> str | None:
    """What is wrong with the name, with the nearest one; None if there is such a kind."""
    known = kind_names(room)
    if name in known:
        return None
    return f"must be one of {', '.join(known)}, got {name!r}.{nearest(name, known)}"


def load_kind(room: Room, name: str) -> Any:
    """The class of a kind.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in _REGISTERED[room]:
        if wrong := check_kind(room, name):
            raise ValueError(f"{room} kind {wrong}")
        importlib.import_module(_module_of(room, name))
    return _REGISTERED[room][name]


def _module_of(room: Room, name: str) -> str:
    return f"{_PACKAGES[room]}.{name}"


def _files(room: Room) -> list[str]:
    """Modules of the room's package that are kinds: neither the contract nor a kind's own parts."""
    spec = importlib.util.find_spec(_PACKAGES[room])
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return [
        file.stem
        for place in spec.submodule_search_locations
        for file in Path(place).glob("*.py")
        if file.stem != "base" and not file.stem.startswith("_")
    ]
