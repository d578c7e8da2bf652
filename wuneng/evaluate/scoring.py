"""Log-likelihoods of answers, with every common beginning computed once.

The figures are those of lm-evaluation-harness' own scoring, up to rounding: an input is the last
``max_length`` tokens before an answer's end, an answer token's log-probability comes from a
log-softmax in the logits' own type, an answer is greedy when each of its tokens is the most
probable one. What differs is the work: inputs that are alike run once; inputs that begin alike
share one forward call for the beginning, whose keys, values, recurrent state, shift vectors and
snapshots every ending then starts from; only scored positions meet the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from wuneng.evaluate.answer_calls import AnswerCalls, Ending
from wuneng.evaluate.answers import Answers
from wuneng.evaluate.prefix_cache import CacheShapes, PrefixPool
from wuneng.evaluate.request_plan import SharedPrefix, batches, pools, shared_prefixes

__all__ = ["CallLimits", "can_share", "score_answers"]

# Models whose cache, positions and plain output layer this module knows.
_MODEL_TYPES = ("wuneng", "llama", "mistral", "qwen2", "qwen3")
# Rotary embeddings that change with the length of the call.
_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
# A mask makes state heads gather their real tokens: measured, a twelfth of a call's time.
_MASK_PRICE = 1 / 12


@dataclass(frozen=True)
class CallLimits:
    """How large forward calls may be.

    Attributes:
        rows: sequences of a call.
        tokens: rows times the longest of them; a single row may be longer.
        call_price: tokens that take as long as a call takes whatever it computes.
        cache_bytes: what a pool of beginnings may take; a single batch of them may be larger.
    """

    rows: int
    tokens: int
    call_price: int
    cache_bytes: int

    @classmethod
    def on(cls, device: torch.device, rows: int | None) -> CallLimits:
        """What suits a device; ``rows`` where the user asks for a batch size."""
        if device.type == "cuda":
            memory = torch.cuda.get_device_properties(device).total_memory
            auto = cls(rows=1024, tokens=16384, call_price=2048, cache_bytes=memory // 16)
        else:
            auto = cls(rows=128, tokens=2048, call_price=48, cache_bytes=1 << 29)
        if rows is None:
            return auto
        return cls(rows, 1 << 62, auto.call_price, auto.cache_bytes)


def can_share(model: Any) -> bool:
    """Whether :func:`score_answers` knows this kind of model."""
    config = model.config
    names = ("rope_parameters", "sliding_rope_parameters")
    ropes = [getattr(config, name, None) or {} for name in names]
    kinds = {rope.get("rope_type", "default") for rope in ropes}
    return config.model_type in _MODEL_TYPES and kinds.isdisjoint(_LENGTH_DEPENDENT_ROPE)


def score_answers(
    model: Any,
    requests: Sequence[tuple[list[int], list[int]]],
    max_length: int,
    limits: CallLimits,
    *,
    softmax_dtype: torch.dtype | None = None,
    on_tokens: Callable[[int], object] = lambda count: None,
) -> list[tuple[float, bool]]:
    """Score every answer.

    Args:
        requests: token ids of what comes before and of the answer; both hold a token at least,
            the answer ``max_length`` at most.
        max_length: tokens that the model reads at once.
        softmax_dtype: of the log-softmax; None is the logits' own.
        on_tokens: called with the number of tokens that a forward call computed.

    Returns:
        For each request the answer's log-likelihood and whether greedy decoding would give it.

    Raises:
        NotFinite: logits that are NaN or infinite; its row is the request's number.
    """
    if not requests:
        return []
    answers = Answers.of(requests, max_length)
    with torch.inference_mode():
        calls = AnswerCalls(model, answers, softmax_dtype, on_tokens)
        _Scorer(calls, limits).run()
        return answers.results(calls.values, calls.greedy)


class _Scorer:
    """Which calls are made, and in what order."""

    def __init__(self, calls: AnswerCalls, limits: CallLimits) -> None:
        self.calls = calls
        self.answers = calls.answers
        self.limits = limits
        self.most_tokens = limits.tokens

    def run(self) -> None:
        """Compute everything, the longest calls first: what does not fit shows at once."""
        groups, alone = shared_prefixes(self.answers.inputs)
        inputs = self.answers.inputs
        for batch in self._batches([len(inputs[place]) for place in alone]):
            self._fitting([alone[i] for i in batch], lambda i: len(inputs[i]), self.calls.plain)
        if groups:
            self._run_groups(groups)

    def _run_groups(self, groups: list[SharedPrefix]) -> None:
        """As many beginnings as a pool holds, then all of their endings, and so on."""
        shapes = CacheShapes.of(self.calls.base, self.calls.device)
        planned = [
            [groups[i] for i in batch]
            for batch in self._batches([group.length for group in groups], _MASK_PRICE)
        ]

        def most_rows(width: int) -> int:
            return max(1, self.limits.cache_bytes // shapes.row_bytes(width))

        for pooled in pools(planned, most_rows):
            width = pooled[0][0].length
            pool = PrefixPool(shapes, sum(map(len, pooled)), width)
            self._run_pool(pool, pooled, most_rows(width))

    def _run_pool(
        self, pool: PrefixPool, planned: list[list[SharedPrefix]], most_rows: int
    ) -> None:
        """Batches of beginnings into the pool, then their endings, ``most_rows`` at once."""
        filled: list[SharedPrefix] = []

        def fill(batch: list[SharedPrefix]) -> None:
            self.calls.beginnings(pool.filling(len(filled)), batch)
            filled.extend(batch)

        for batch in planned:
            self._fitting(batch, lambda group: group.length, fill)
        endings = [
            Ending(member, row, group.length)
            for row, group in enumerate(filled)
            for member in group.members
            if len(self.answers.inputs[member]) > group.length
        ]

        def length(ending: Ending) -> int:
            return len(self.answers.inputs[ending.place]) - ending.prefix

        for places in self._batches([length(ending) for ending in endings], most_rows=most_rows):
            self._fitting(
                [endings[i] for i in places], length, lambda rows: self.calls.endings(pool, rows)
            )

    def _batches(
        self, lengths: list[int], uneven_price: float = 0.0, most_rows: int | None = None
    ) -> list[list[int]]:
        return batches(
            lengths,
            most_rows=min(self.limits.rows, most_rows or self.limits.rows),
            most_tokens=self.limits.tokens,
            call_price=self.limits.call_price,
            uneven_price=uneven_price,
        )

    def _fitting(
        self, batch: list[Any], length: Callable[[Any], int], run: Callable[[list[Any]], None]
    ) -> None:
        """Run a batch, in halves where the device's memory does not hold it."""
        pending = [batch]
        while pending:
            rows = pending.pop()
            tokens = len(rows) * max(length(row) for row in rows)
            fits = tokens <= self.most_tokens or len(rows) == 1
            if fits:
                try:
                    run(rows)
                    continue
                except torch.OutOfMemoryError:
                    if len(rows) == 1:
                        raise
                    self.most_tokens = tokens // 2
                if self.calls.device.type == "cuda":
                    torch.cuda.empty_cache()
            half = len(rows) // 2
            pending += [rows[half:], rows[:half]]
