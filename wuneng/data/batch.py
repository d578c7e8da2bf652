"""What a training loop is handed: batches, and the two promises that every source of them keeps.

B is the number of sequences in a batch, T the tokens of a sequence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["IGNORED", "Batch", "Prepared", "TrainingData", "ValidationData"]

#: The label of a position that is not scored (what ``torch.nn.functional.cross_entropy`` ignores).
IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """B sequences of T tokens and what each position should predict.

    ``labels`` are already shifted: ``labels[b, t]`` is the target of the output *at* t, so the loss
    is ``cross_entropy(logits[b, t], labels[b, t])`` with no further shift.
    """

    input_ids: Tensor
    """``[B, T]`` int64."""
    labels: Tensor
    """``[B, T]`` int64; ``IGNORED`` (-100) where nothing is scored."""
    document_ids: Tensor | None
    """``[B, T]`` int32, non-decreasing along a row: neither attention nor state may cross from one
    value to the next. None: every row is one document."""
    task: str
    """The name under which the batch is scored: ``text``, a task's name, or ``mixture``."""
    length: int
    """T, the length that a quality name such as ``recall/accuracy@64`` carries."""
    row_bytes: tuple[int, ...] = ()
    """B numbers: the UTF-8 bytes that each row's scored labels spell, the denominators of bits per
    byte; empty for tasks whose tokens are not text."""
    source: str = ""
    """Where the text is of several sources, the one that all rows are of."""

    @property
    def target_bytes(self) -> int:
        """UTF-8 bytes of all rows; 0 for tasks whose tokens are not text."""
        return sum(self.row_bytes)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on ``device``."""
        document_ids = None if self.document_ids is None else self.document_ids.to(device)
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            labels=self.labels.to(device),
            document_ids=document_ids,
        )


class TrainingData(Protocol):
    """An endless stream of batches that can be put back to any earlier position exactly."""

    vocab_size: int
    """Token ids are below this."""

    def next_batch(self) -> Batch:
        """The next batch; its size and length come from the training settings."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The position before the next batch, as JSON-able values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``: the batches that follow equal the ones that followed then."""
        ...


class ValidationData(Protocol):
    """A fixed set of batches, the same ones in the same order at every pass."""

    def batches(self) -> Iterator[Batch]:
        """One pass over the set; each batch is of one task and one length."""
        ...


#: How the line of a description begins that depends on the number of steps.
EPOCHS = "the run sees "


_OF_GUESSING = re.compile(r" \(chance [^)]*\)")


def same_data(description: str, other: str) -> bool:
    """Whether two descriptions are of the same data, for however many steps, and whatever they say
    of guessing."""

    def of_data(text: str) -> list[str]:
        lines = _OF_GUESSING.sub("", text).splitlines()
        return [line for line in lines if not line.startswith(EPOCHS)]

    return of_data(description) == of_data(other)


@dataclass
class Prepared:
    """Everything that a run needs from its data settings."""

    train: TrainingData
    validation: ValidationData
    """Cheap: scored every so often during training."""
    final: ValidationData
    """Complete: scored once at the end, at every length multiple."""
    tokenizer: PreTrainedTokenizerFast | None
    """Saved beside the model; None for synthetic tasks, whose tokens spell nothing."""
    vocab_size: int
    description: str
    """One or more lines for people: what was read, how it was split, how many tokens."""
