"""The three kinds of forward call that score answers, and what is read off them.

plain      inputs that share nothing, padded on the right; nothing comes after a pad, so no mask
beginnings what several inputs begin with, padded on the left (under a mask) where their lengths
           differ; it fills a pool
endings    rows of the pool, continued; padded on the right
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wuneng.evaluate.answers import Answers, Ints
from wuneng.evaluate.prefix_cache import PrefixPool
from wuneng.evaluate.request_plan import SharedPrefix
from wuneng.model.call_arguments import with_cache
from wuneng.model.finite import NotFinite, all_finite

__all__ = ["AnswerCalls", "Ending"]

_LOGITS_AT_ONCE = 1 << 26


@dataclass(frozen=True)
class Ending:
    """An input's tokens after its first ``prefix``, which row ``row`` of the pool has read."""

    place: int
    row: int
    prefix: int


@dataclass(frozen=True)
class _Read:
    """Positions ``first`` .. ``last - 1`` of an input, read in columns ``shift`` further right."""

    place: int
    first: int
    last: int
    shift: int


class AnswerCalls:
    """Forward calls of a model, and the figures they give.

    Args:
        model: a transformers causal model whose output layer is plain.
        softmax_dtype: of the log-softmax; None is the logits' own.
        on_tokens: called with the number of tokens that a call computed.

    Attributes:
        base: the model without its output layer.
        values: ``[slots]`` log-probabilities of the answers' tokens, as far as computed.
        greedy: ``[slots]`` whether each is the most probable token.
    """

    def __init__(
        self,
        model: Any,
        answers: Answers,
        softmax_dtype: torch.dtype | None,
        on_tokens: Callable[[int], object],
    ) -> None:
        self.base, self.head = model.base_model, _head(model)
        self.device: torch.device = model.device
        self.answers = answers
        self.softmax_dtype = softmax_dtype
        self.on_tokens = on_tokens
        self.values = torch.zeros(len(answers.targets), dtype=softmax_dtype or model.dtype)
        self.greedy = torch.zeros(len(answers.targets), dtype=torch.bool)

    def plain(self, batch: list[int]) -> None:
        """Whole inputs, by their places."""
        rows = [self.answers.inputs[place] for place in batch]
        hidden = self._forward(_padded(rows, left=False))
        self._score(
            hidden,
            [[_Read(place, 0, len(row), 0)] for place, row in zip(batch, rows, strict=True)],
        )

    def beginnings(self, cache: Any, batch: list[SharedPrefix]) -> None:
        """Fill the cache; answers that begin within a beginning are scored on the way."""
        rows = [self.answers.inputs[group.members[0]][: group.length] for group in batch]
        ids = _padded(rows, left=True)
        width = ids.shape[1]
        hidden = self._forward(ids, cache, self._mask(np.array([len(row) for row in rows]), width))
        self._score(
            hidden,
            [
                [_Read(one, 0, group.length, width - group.length) for one in group.members]
                for group in batch
            ],
        )

    def endings(self, pool: PrefixPool, batch: list[Ending]) -> None:
        """Continue rows of the pool."""
        rows = [self.answers.inputs[one.place][one.prefix :] for one in batch]
        ids = _padded(rows, left=False)
        prefixes = np.array([one.prefix for one in batch])
        width = int(prefixes.max())
        cache = pool.continuing(torch.tensor([one.row for one in batch], device=self.device), width)
        hidden = self._forward(ids, cache, self._mask(prefixes, width, more=ids.shape[1]))
        self._score(
            hidden,
            [
                [_Read(one.place, one.prefix, one.prefix + len(row), -one.prefix)]
                for one, row in zip(batch, rows, strict=True)
            ],
        )

    def _mask(self, lengths: Ints, width: int, more: int = 0) -> dict[str, Tensor]:
        """Mask and positions of rows whose first ``lengths`` tokens stand on the right of ``width``
        columns, with ``more`` columns to come; nothing where all are as long."""
        if (lengths == width).all():
            return {}
        pads = torch.from_numpy(width - lengths)[:, None]
        columns = torch.arange(width + more)
        positions = (columns - pads).clamp(min=0)
        if more:
            positions = positions[:, width:]
        mask = (columns >= pads).long()
        return {
            "attention_mask": mask.to(self.device),
            "position_ids": positions.to(self.device),
        }

    def _forward(
        self, ids: Tensor, cache: Any = None, masked: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Last hidden states ``[B, T, D]``."""
        output = self.base(
            ids.to(self.device),
            use_cache=cache is not None,
            **with_cache(cache),
            **(masked or {}),
        )
        self.on_tokens(ids.numel())
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _score(self, hidden: Tensor, rows: Sequence[Sequence[_Read]]) -> None:
        """Log-probabilities of the answer tokens that ``hidden`` ``[B, T, D]`` predicts.

        Args:
            rows: for each row of the batch what it has read.
        """
        found = [
            (slots, positions + (row * hidden.shape[1] + read.shift))
            for row, reads in enumerate(rows)
            for read in reads
            for slots, positions in self.answers.predicted(read.place, read.first, read.last)
        ]
        if not found:
            return
        slots, places = (np.concatenate(parts) for parts in zip(*found, strict=True))
        unique, which = np.unique(places, return_inverse=True)
        flat = hidden.flatten(0, 1)
        step = max(1, _LOGITS_AT_ONCE // self.head.out_features)
        for start in range(0, len(unique), step):
            chosen = torch.from_numpy(unique[start : start + step]).to(self.device)
            here = (which >= start) & (which < start + step)
            self._put(self.head(flat[chosen]), slots[here], which[here] - start)

    def _put(self, logits: Tensor, slots: Ints, which: Ints) -> None:
        """Write the figures of ``slots``, which rows ``which`` of ``logits`` ``[n, V]`` predict."""
        if not all_finite(logits):
            bad = (~torch.isfinite(logits).all(dim=-1)).nonzero().squeeze(1).cpu().numpy()
            raise NotFinite(self.answers.request_of(int(slots[np.isin(which, bad)].min())))
        scores = F.log_softmax(logits, dim=-1, dtype=self.softmax_dtype)
        target = torch.from_numpy(self.answers.targets[slots]).to(self.device)
        row = torch.from_numpy(which).to(self.device)
        found = scores[row, target]
        # An argmax takes ten times as long as a maximum: only candidates get one, for ties.
        greedy = found == scores.amax(dim=-1)[row]
        near = greedy.nonzero().squeeze(1)
        greedy[near] = scores[row[near]].argmax(dim=-1) == target[near]
        at = torch.from_numpy(slots)
        self.values[at] = found.to(self.values)
        self.greedy[at] = greedy.cpu()


def _head(model: Any) -> Any:
    """What makes a model's logits: a WuNeng may do more than multiply."""
    own = getattr(model, "output_head", None)
    return model.get_output_embeddings() if own is None else own()


def _padded(rows: list[list[int]], *, left: bool) -> Tensor:
    """Token ids ``[B, longest]``, zeros for pads."""
    longest = max(len(row) for row in rows)
    ids = np.zeros((len(rows), longest), dtype=np.int64)
    for row, into in zip(rows, ids, strict=True):
        into[longest - len(row) if left else 0 :][: len(row)] = row
    return torch.from_numpy(ids)
