"""How one arm is spread over several processes: the fields of ``parallel:``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from wuneng.recipe.settings import Settings
from wuneng.recipe.sizes import Real

__all__ = ["MOST_PROCESSES", "Parallel"]

#: More than any launcher starts; a typing error otherwise.
MOST_PROCESSES = 1 << 20


def _degree(value: Any) -> Any:
    if value == "auto" or (type(value) is int and 1 <= value <= MOST_PROCESSES):
        return value
    raise PydanticCustomError(
        "degree", "{expected}", {"expected": "auto or a number of processes from 1"}
    )


def _context(value: Any) -> Any:
    if type(value) is int and value == 1:
        return value
    raise PydanticCustomError(
        "context",
        "{expected}",
        {"expected": "1: a sequence is not divided among processes (context parallelism) yet"},
    )


Degree = Annotated[Literal["auto"] | int, BeforeValidator(_degree)]


class Parallel(Settings):
    """How the processes that `torchrun` or `--processes` starts share the training of an arm.
    ``replicate`` times ``shard`` times ``context`` is their number; it changes no figure beyond
    rounding, so a run may be continued with another."""

    replicate: Degree = "auto"
    """Copies of the model, each trained on its part of every batch (DDP); with ``shard`` too,
    copies of groups of processes (HSDP). ``auto``: what ``shard`` leaves."""
    shard: Degree = "auto"
    """Processes among which weights, gradients and optimiser states are cut (FSDP). ``auto``: one,
    or those of a host where they would fill more than a quarter of a device's memory."""
    context: Annotated[int, BeforeValidator(_context)] = 1
    """Processes among which a sequence is cut: 1."""
    timeout: Annotated[Real, Field(gt=0.0)] = 600.0
    """Seconds that a process waits for the others before it says which one is missing."""
