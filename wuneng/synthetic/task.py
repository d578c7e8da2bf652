"""What every synthetic task offers, and where its randomness comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from wuneng.data.batch import IGNORED
from wuneng.errors import DataError

__all__ = ["Examples", "SizedTask", "Task", "random_stream"]


class Examples(NamedTuple):
    """R sequences of L tokens, with ids counted from 0 within the task."""

    inputs: NDArray[np.int64]
    """``[R, L]``."""
    labels: NDArray[np.int64]
    """``[R, L]``; ``IGNORED`` (-100) where nothing is asked."""

    @classmethod
    def blank(cls, rows: int, length: int, filler: int) -> Examples:
        """``rows`` sequences of ``length`` fillers, with nothing asked."""
        inputs = np.full((rows, length), filler, dtype=np.int64)
        return cls(inputs, np.full((rows, length), IGNORED, dtype=np.int64))

    def write(self, places: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        """Put ``tokens`` ``[R, n]`` at ``places`` ``[R, n]`` of the inputs."""
        np.put_along_axis(self.inputs, places, tokens, 1)

    def ask(self, places: NDArray[np.int64], answers: NDArray[np.int64]) -> None:
        """Ask for ``answers`` ``[R, n]`` at ``places`` ``[R, n]``."""
        np.put_along_axis(self.labels, places, answers, 1)


class Task(Protocol):
    """A task whose examples can be made at any length."""

    name: str
    vocab_size: int
    chance: float
    """Accuracy of the best answer that does not look at the sequence."""

    def examples(self, random: np.random.Generator, rows: int, length: int) -> Examples:
        """``rows`` sequences of exactly ``length`` tokens, all positions scored that can be."""
        ...

    def solve(self, row: Sequence[int]) -> list[int]:
        """The labels of one sequence, found from its tokens alone by following the rules."""
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


class SizedTask:
    """A task that needs ``shortest`` tokens and scores all it can from the start of training.

    Args:
        tokens: its tokens, by kind, as many of each.
        answers: how many answers are equally likely to someone who has not seen the order of the
            tokens.
        shortest: tokens of the shortest sequence.
        needs: what those are, for the message that a sequence is too short.
        what: the task in a few words.
    """

    def __init__(
        self, name: str, *, tokens: int, answers: int, shortest: int, needs: str, what: str
    ) -> None:
        self.name = name
        self.vocab_size = tokens
        self.chance = 1.0 / answers
        self.shortest = shortest
        self._needs = needs
        self._what = what

    def describe(self) -> str:
        """One line for people."""
        return f"{self.name}: {self._what} (chance {self.chance:.3f})"

    def scored_positions(self, length: int, progress: float) -> int:
        """All of them, from the start of training."""
        return length

    def check_length(self, length: int) -> None:
        """Raise DataError where the task does not fit into ``length`` tokens."""
        if length < self.shortest:
            raise DataError(
                f"task {self.name!r} needs at least {self.shortest} tokens ({self._needs}), but "
                f"the sequence length is {length}"
            )


def random_stream(*identity: object) -> np.random.Generator:
    """The random numbers that belong to ``identity`` (seed, purpose, step, ...) and to no other.

    Philox is keyed by a hash, so that streams of different purposes never overlap.
    """
    digest = hashlib.blake2b(repr(identity).encode("utf-8"), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
