"""What every synthetic task offers, and where its randomness comes from."""

from __future__ import annotations

import hashlib
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Examples", "Task", "random_stream"]


class Examples(NamedTuple):
    """R sequences of L tokens, with ids counted from 0 within the task."""

    inputs: NDArray[np.int64]
    """``[R, L]``."""
    labels: NDArray[np.int64]
    """``[R, L]``; ``IGNORED`` (-100) where nothing is asked."""


class Task(Protocol):
    """A task whose examples can be made at any length."""

    name: str
    vocab_size: int
    chance: float
    """Accuracy of the best answer that does not look at the sequence."""

    def examples(self, random: np.random.Generator, rows: int, length: int) -> Examples:
        """``rows`` sequences of exactly ``length`` tokens, all positions scored that can be."""
        ...

    def check_length(self, length: int) -> None:
        """Raise DataError where the task does not fit into ``length`` tokens."""
        ...

    def scored_positions(self, length: int, progress: float) -> int:
        """How many positions from the start are scored at ``progress`` (0 to 1) of training."""
        ...

    def describe(self) -> str:
        """One line for people."""
        ...


def random_stream(*identity: object) -> np.random.Generator:
    """The random numbers that belong to ``identity`` (seed, purpose, step, ...) and to no other.

    Philox is keyed by a hash, so that streams of different purposes never overlap.
    """
    digest = hashlib.blake2b(repr(identity).encode("utf-8"), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
