"""The ``validation`` task: held-out text of the recipe that a run was trained from.

The rows are those that training scores at its end, so for a run's own arms the figure equals the
one in results.json up to rounding. Any other model can be scored on the same text with its own
tokenizer: then bits per byte is the figure that compares, and items are stretches of bytes, which
line up whatever the tokens are.

Every document of a row is scored as a sequence of its own, which any causal model can do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from wuneng.data.batch import IGNORED, Batch
from wuneng.data.encoding import Encoder
from wuneng.errors import NonFiniteError, TaskError
from wuneng.evaluate.harness_model import HarnessModel
from wuneng.evaluate.not_finite import not_finite_error
from wuneng.evaluate.outcomes import MetricOutcomes, TaskOutcomes
from wuneng.evaluate.run_tasks import run_and_recipe
from wuneng.evaluate.tasks import VALIDATION
from wuneng.model.finite import NotFinite, all_finite
from wuneng.recipe import Recipe, TextData
from wuneng.records import RunDirectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["BLOCK_BYTES", "ValidationText", "open_validation", "run_validation", "same_tokens"]

#: Bytes of an item where models with different tokenizers are compared.
BLOCK_BYTES = 4096
# One forward call holds several short rows: at most so many tokens, and so many logits.
_TOKENS_AT_ONCE = 8192
_LOGITS_AT_ONCE = 1 << 26


@dataclass(frozen=True)
class ValidationText:
    """The held-out text of a run.

    Attributes:
        recipe: the run's, resolved.
        by_row: items are packed rows (models that share a tokenizer) or blocks of bytes.
        limit: score at most so many items.
    """

    recipe: Recipe
    by_row: bool
    limit: int | None

    def rows(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Iterator[Batch]:
        """Packed rows of the text, one a batch, in the order of the text."""
        from wuneng.data import prepare_text
        from wuneng.data.packing import TASK

        recipe = self.recipe
        data = recipe.data
        assert isinstance(data, TextData)
        evaluation = recipe.evaluation
        rows = None
        if evaluation.max_batches is not None:
            rows = evaluation.max_batches * (evaluation.batch_size or recipe.training.batch_size)
        if self.by_row and self.limit is not None:
            rows = min(self.limit, rows or self.limit)
        length = min(recipe.training.sequence_length, max_length)
        prepared = prepare_text(
            data,
            recipe.training.model_copy(update={"sequence_length": length}),
            evaluation.model_copy(
                update={"batch_size": 1, "max_batches": rows if self.by_row else None}
            ),
            recipe.seeds[0],
            tokenizer=tokenizer,  # type: ignore[arg-type]
        )
        # What is scored and not trained on is no part of the text, as in results.json.
        yield from (batch for batch in prepared.final.batches() if batch.task == TASK)

    @property
    def max_bytes(self) -> int | None:
        """Where blocks end: the limit, or about as much text as the recipe scores."""
        if self.limit is not None:
            return self.limit * BLOCK_BYTES
        evaluation, training = self.recipe.evaluation, self.recipe.training
        if evaluation.max_batches is None:
            return None
        rows = evaluation.max_batches * (evaluation.batch_size or training.batch_size)
        return max(1, rows * training.sequence_length // BLOCK_BYTES) * BLOCK_BYTES


def open_validation(run: RunDirectory | None, *, by_row: bool, limit: int | None) -> ValidationText:
    """The held-out text of a run's recipe.

    Raises:
        TaskError: there is no run, or it was trained on synthetic tasks.
        RecipeError: its recipe cannot be read.
    """
    run, recipe = run_and_recipe(run, VALIDATION, "the validation text is that of a run's recipe")
    if not isinstance(recipe.data, TextData):
        raise TaskError(
            f"--tasks {VALIDATION}: {run.path} was trained on synthetic tasks, which have no "
            f"validation text; their figures are in {run.results}."
        )
    return ValidationText(recipe, by_row, limit)


def same_tokens(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers turn every document into the same tokens."""
    if first is second:
        return True
    return Encoder(first).digest == Encoder(second).digest  # type: ignore[arg-type]


def run_validation(model: HarnessModel, text: ValidationText) -> TaskOutcomes:
    """Score a model on held-out text.

    Returns:
        Metrics "bits_per_byte" and, where items are rows, "perplexity" (per token).

    Raises:
        DataError: the text cannot be read.
        NonFiniteError: logits that are NaN or infinite.
    """
    tokenizer = model.tokenizer
    lengths = Encoder(tokenizer).spelling.lengths  # [V] UTF-8 bytes that a token spells
    tallies = _Tallies(text.by_row, None if text.by_row else text.max_bytes)
    budget = min(_TOKENS_AT_ONCE, _LOGITS_AT_ONCE // model.model.config.vocab_size)
    pending: list[Batch] = []
    for row in text.rows(tokenizer, model.max_length):
        pending.append(row)
        if len(pending) * row.length >= budget:
            _add_rows(model, pending, lengths, tallies, budget)
            pending = []
            if tallies.full:
                break
    if pending:
        _add_rows(model, pending, lengths, tallies, budget)
    return tallies.outcomes(text.recipe.name)


class _Tallies:
    """Sums per item: a row, or a block of bytes."""

    def __init__(self, by_row: bool, max_bytes: int | None) -> None:
        self.by_row = by_row
        self.max_bytes = max_bytes
        self.position = 0  # bytes of text before the next row
        self.rows = 0
        self.sums: dict[int, NDArray[np.float64]] = {}  # item -> log-likelihood, tokens, bytes

    @property
    def full(self) -> bool:
        """Whether the text that is wanted has been scored."""
        return self.max_bytes is not None and self.position >= self.max_bytes

    def add(self, scores: NDArray[np.float64], sizes: NDArray[np.int64], row_bytes: int) -> None:
        """One row: log-likelihood and bytes of each scored label `[L]`, bytes of the row."""
        if len(scores):
            starts = self.position + np.concatenate([[0], np.cumsum(sizes)[:-1]])
            items = np.full(len(scores), self.rows) if self.by_row else starts // BLOCK_BYTES
            for item in np.unique(items):
                chosen = items == item
                entry = self.sums.setdefault(int(item), np.zeros(3))
                entry += (scores[chosen].sum(), chosen.sum(), sizes[chosen].sum())
            # Bytes that the tokenizer does not spell as written belong to the row's beginning.
            self.sums[int(items[0])][2] += row_bytes - sizes.sum()
        self.position += row_bytes
        self.rows += 1

    def _wanted(self, item: int, entry: NDArray[np.float64]) -> bool:
        if self.by_row:  # a row may score an end of text alone, which spells no byte but costs
            return bool(entry[1] > 0)
        return bool(entry[2] > 0) and (
            self.max_bytes is None or item * BLOCK_BYTES < self.max_bytes
        )

    def outcomes(self, name: str) -> TaskOutcomes:
        """Per-item outcomes, blocks beyond the wanted text left out."""
        wanted = [item for item, entry in sorted(self.sums.items()) if self._wanted(item, entry)]
        if not sum(self.sums[item][2] for item in wanted):
            raise TaskError(f"--tasks {VALIDATION}: the validation text of {name} scores no byte.")
        scores, tokens, sizes = np.array([self.sums[item] for item in wanted]).T
        metrics = {
            "bits_per_byte": MetricOutcomes(
                "ratio", scores, weights=sizes, scale="bits", higher_is_better=False
            )
        }
        if self.by_row:
            metrics["perplexity"] = MetricOutcomes(
                "ratio", scores, weights=tokens, scale="perplexity", higher_is_better=False
            )
        unit = "row" if self.by_row else "block"
        return TaskOutcomes(
            task=VALIDATION,
            item_ids=[f"{unit}-{item}" for item in wanted],
            metrics=metrics,
            split="validation",
        )


def _add_rows(
    model: HarnessModel,
    rows: list[Batch],
    lengths: NDArray[Any],
    tallies: _Tallies,
    budget: int,
) -> None:
    pieces = [piece for row in rows for piece in _pieces(row)]
    try:
        scored = iter(_log_likelihoods(model, pieces, budget))
    except NotFinite as found:
        raise _not_finite(model, rows, tallies.rows, found.read) from None
    for row in rows:
        parts = [next(scored) for _ in _pieces(row)]
        labels = row.labels[row.labels != IGNORED].numpy()
        scores = np.concatenate(parts) if parts else np.zeros(0)
        tallies.add(scores, lengths[labels].astype(np.int64), row.target_bytes)


def _not_finite(
    model: HarnessModel, rows: list[Batch], before: int, tokens: Tensor
) -> NonFiniteError:
    """Names the first of ``rows`` that fails, numbered from ``before`` on; ``tokens`` did."""
    item = f"{VALIDATION}, from row {before}"
    for place, piece, labels in [(i, *one) for i, row in enumerate(rows) for one in _pieces(row)]:
        logits = model.logits(piece[None])[0]
        if not all_finite(logits[labels.to(logits.device) != IGNORED]):
            item, tokens = f"{VALIDATION}, row {before + place}", piece
            break
    return not_finite_error(model.model, model.label, item, lambda: model.logits(tokens[None]))


def _pieces(row: Batch) -> list[tuple[Tensor, Tensor]]:
    """Token ids and labels `[L]` of each document in a row that has something to score."""
    tokens, labels = row.input_ids[0], row.labels[0]
    if row.document_ids is None:
        return [(tokens, labels)]
    _, sizes = torch.unique_consecutive(row.document_ids[0], return_counts=True)
    parts = zip(tokens.split(sizes.tolist()), labels.split(sizes.tolist()), strict=True)
    return [(t, lab) for t, lab in parts if bool((lab != IGNORED).any())]


def _log_likelihoods(
    model: HarnessModel, pieces: list[tuple[Tensor, Tensor]], budget: int
) -> list[NDArray[np.float64]]:
    """Log-likelihood of each scored label, per piece; similar lengths run together.

    Raises NotFinite where logits are NaN or infinite.
    """
    results: list[NDArray[np.float64]] = [np.zeros(0)] * len(pieces)
    sequences = [tokens for tokens, _ in pieces]
    order = sorted(range(len(pieces)), key=lambda i: -len(sequences[i]))
    while order:
        longest = len(sequences[order[0]])
        chosen = order[: max(1, budget // longest)]
        order = order[len(chosen) :]
        batch = torch.nn.utils.rnn.pad_sequence([sequences[i] for i in chosen], batch_first=True)
        logits = model.logits(batch)
        for row, i in enumerate(chosen):
            labels = pieces[i][1]
            kept = (labels != IGNORED).nonzero().squeeze(1)
            predicted = logits[row, kept.to(logits.device)].float()
            if not all_finite(predicted):
                raise NotFinite(i, pieces[i][0])
            nats = F.cross_entropy(predicted, labels[kept].to(logits.device), reduction="none")
            results[i] = -nats.to("cpu", torch.float64).numpy()
    return results
