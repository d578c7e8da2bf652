"""What a launcher told this process about the others, in the variables that torchrun sets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from wuneng.device import WORLD_SIZES
from wuneng.errors import InputError

__all__ = ["Launched", "launched"]

_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launched:
    """One of ``size`` processes that train together."""

    rank: int
    """Its number among all, from 0."""
    size: int
    local_rank: int
    """Its number among those of this host."""
    local_size: int
    restarts: int = 0
    """How often torchrun has started all of them again after one failed."""


def launched(variables: Mapping[str, str] | None = None) -> Launched | None:
    """Which of several processes this is; None where it is the only one.

    Raises:
        InputError: only some of torchrun's variables are set, or they contradict each other.
    """
    variables = os.environ if variables is None else variables
    told = {name: variables.get(name, "") for name in WORLD_SIZES}
    several = [name for name, size in told.items() if size.isdecimal() and int(size) > 1]
    if not several:
        return None
    missing = [name for name in _NEEDED if not variables.get(name)]
    if missing:
        raise InputError(
            f"{several[0]} is {told[several[0]]}: expected one process, or what torchrun tells "
            f"each of several; {', '.join(missing)} not set. Start it with torchrun, "
            "or on one machine with --processes N"
        )
    found = Launched(
        rank=_number("RANK", variables),
        size=_number("WORLD_SIZE", variables),
        local_rank=_number("LOCAL_RANK", variables),
        local_size=_number("LOCAL_WORLD_SIZE", variables),
        restarts=_number("TORCHELASTIC_RESTART_COUNT", variables, 0),
    )
    for name, value, end in (
        ("RANK", found.rank, found.size),
        ("LOCAL_RANK", found.local_rank, found.local_size),
    ):
        if value >= end:
            raise InputError(f"{name} is {value}: expected less than {end}, the processes there")
    return found


def _number(name: str, variables: Mapping[str, str], default: int | None = None) -> int:
    text = variables.get(name, "")
    if not text and default is not None:
        return default
    if not text.isdecimal():
        raise InputError(f"{name} is {text!r}: expected a whole number, as torchrun sets it")
    return int(text)
