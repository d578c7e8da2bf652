"""Requests of a harness task as what a model reads and which of its predictions are scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Answers", "Ints"]

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Answers:
    """Unique inputs, and a place for one figure for each answer token ("slot").

    The harness' rule: a model reads the last ``max_length`` tokens before an answer's last token,
    so what is too long is cut from the left.

    Attributes:
        inputs: unique token ids that the model reads.
        requests_of: for each input the requests that read it (they differ in the last token, or
            in where the answer begins).
        targets: ``[slots]`` answer tokens, request after request.
        offsets: ``[requests + 1]`` where each request's answer begins in ``targets``.
    """

    inputs: list[list[int]]
    requests_of: list[list[int]]
    targets: Ints
    offsets: Ints

    @classmethod
    def of(cls, requests: Sequence[tuple[list[int], list[int]]], max_length: int) -> Answers:
        """Requests as (tokens before, tokens of the answer). ValueError where either is empty."""
        places: dict[tuple[int, ...], int] = {}
        requests_of: list[list[int]] = []
        for number, (before, answer) in enumerate(requests):
            if not before or not answer:
                raise ValueError(f"request {number} has no tokens before its answer, or none in it")
            read = tuple((before + answer)[-(max_length + 1) : -1])
            place = places.setdefault(read, len(places))
            if place == len(requests_of):
                requests_of.append([])
            requests_of[place].append(number)
        sizes = [len(answer) for _, answer in requests]
        targets = np.array([token for _, answer in requests for token in answer], dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        return cls([list(read) for read in places], requests_of, targets, offsets)

    def predicted(self, place: int, first: int, last: int) -> Iterator[tuple[Ints, Ints]]:
        """What positions ``first`` .. ``last - 1`` of an input predict of the answers to it.

        Yields:
            For each answer that they predict anything of: slots, and as many positions.
        """
        length = len(self.inputs[place])
        for request in self.requests_of[place]:
            begin, end = int(self.offsets[request]), int(self.offsets[request + 1])
            start = length - (end - begin)  # predicts the answer's first token
            low, high = max(first, start), min(last, length)
            if low < high:
                yield (
                    np.arange(begin + low - start, begin + high - start),
                    np.arange(low, high),
                )

    def request_of(self, slot: int) -> int:
        """The request whose answer token has this slot."""
        return int(np.searchsorted(self.offsets, slot, side="right")) - 1

    def results(self, values: Tensor, greedy: Tensor) -> list[tuple[float, bool]]:
        """For each request its log-likelihood, and whether greedy decoding gives the answer.

        Args:
            values: ``[slots]`` log-probabilities; sums are rounded to their type.
            greedy: ``[slots]`` whether the answer's token is the most probable one.
        """
        starts = self.offsets[:-1]
        sums = torch.from_numpy(np.add.reduceat(values.double().numpy(), starts))
        every = np.logical_and.reduceat(greedy.numpy(), starts)
        return list(zip(sums.to(values.dtype).tolist(), every.tolist(), strict=True))
