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
    if value != "auto":
        return _degree(value)
    raise PydanticCustomError("context", "{expected}", {"expected": "a number of processes from 1"})


Degree = Annotated[Literal["auto"] | int, BeforeValidator(_degree)]


class Parallel(Settings):
    """How the processes that `torchrun` or `--processes` starts share the training of an arm.
    ``replicate`` times ``shard`` times ``context`` is their number; it changes no figure beyond
    rounding (``gather`` and ``reduce``: bf16's), so a run may be continued with another."""

    replicate: Degree = "auto"
    """Copies of the model, each trained on its part of every batch (DDP); with ``shard`` too,
    copies of groups of processes (HSDP). ``auto``: what ``shard`` leaves."""
    shard: Degree = "auto"
    """Processes among which weights, gradients and optimiser states are cut (FSDP). ``auto``: one,
    or those of a host where they would fill more than a quarter of a device's memory."""
    context: Annotated[int, BeforeValidator(_context)] = 1
    """Processes among which every sequence is cut, each with consecutive tokens of it (context
    parallelism): for sequences that are too long for one device."""
    gather: Literal["fp32", "precision"] = "fp32"
    """What weights that are cut (FSDP) are put together in for a layer: fp32, as one process holds
    them, or the autocast type of ``training.precision``: half the traffic and memory, but norms and
    decays are rounded too. What is stored and updated stays fp32."""
    reduce: Literal["fp32", "precision"] = "fp32"
    """What gradients of weights that are cut are summed in, likewise."""
    checkpoints: Literal["auto", "whole", "sharded"] = "auto"
    """``whole``: the first process writes them. ``sharded``: each writes its own part, which needs
    a run directory that all hosts share. ``auto``: sharded where weights are cut (FSDP). Any number
    of processes reads either."""
    timeout: Annotated[Real, Field(gt=0.0)] = 600.0
    """Seconds that a process waits for the others before it says which one is missing."""
