"""Several tasks in one vocabulary: batches with rows of each, and validation of each alone.

Task i's tokens are shifted by the vocabulary sizes of the tasks before it, so that a token says
which task a row is of, and no tag is needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wuneng.data.batch import IGNORED, Batch
from wuneng.errors import DataError
from wuneng.synthetic.task import Examples, Task, random_stream

__all__ = ["MIXTURE", "MixtureTraining", "MixtureValidation", "rows_of_tasks", "token_offsets"]

#: Task name of a training batch whose rows are of several tasks.
MIXTURE = "mixture"

_BLOCK_ROWS = 64
# A row that is held out is drawn again, at most so often.
_MOST_DRAWS = 200


def token_offsets(tasks: Sequence[Task]) -> list[int]:
    """First token of each task, and the size of the whole vocabulary as the last item."""
    return [0, *np.cumsum([task.vocab_size for task in tasks]).tolist()]


def rows_of_tasks(weights: Sequence[float], rows: int) -> list[int]:
    """Rows of a batch that each task gets: at least one, and in proportion to the weights.

    Raises DataError when there are fewer rows than tasks.
    """
    if rows < len(weights):
        raise DataError(
            f"training.batch_size = {rows} is too small: each of the {len(weights)} tasks needs a "
            "row of every batch"
        )
    given = [1] * len(weights)
    for _ in range(rows - len(weights)):
        # The next row goes where it is most overdue; ties to the first task.
        overdue = [count / weight for count, weight in zip(given, weights, strict=True)]
        given[overdue.index(min(overdue))] += 1
    return given


class MixtureTraining:
    """Training batches, made on the fly: batch n is a function of the seed and n.

    No row of ``held_out`` (at its own length) is ever trained on: such a row is drawn again.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        weights: Sequence[float],
        *,
        batch_size: int,
        sequence_length: int,
        total_steps: int,
        seed: int,
        held_out: MixtureValidation,
    ) -> None:
        self.tasks = tasks
        self.offsets = token_offsets(tasks)
        self.vocab_size = self.offsets[-1]
        self.rows = rows_of_tasks(weights, batch_size)
        self.sequence_length = sequence_length
        self.total_steps = total_steps
        self.seed = seed
        self.step = 0
        self._order = _interleaved(self.rows)
        self._held_out = held_out

    def next_batch(self) -> Batch:
        """``[batch_size, sequence_length]``, the tasks' rows taking turns.

        Raises DataError where nearly all rows that a task has are held out.
        """
        progress = self.step / max(1, self.total_steps)
        inputs, labels = [], []
        for task, offset, rows in zip(self.tasks, self.offsets, self.rows, strict=False):
            random = random_stream("train", self.seed, task.name, self.step)
            examples = self._unseen(task, random, rows)
            scored = task.scored_positions(self.sequence_length, progress)
            examples.labels[:, scored:] = IGNORED
            shifted = _shifted(examples, offset)
            inputs.append(shifted.inputs)
            labels.append(shifted.labels)
        self.step += 1
        return Batch(
            input_ids=torch.from_numpy(np.concatenate(inputs)[self._order]),
            labels=torch.from_numpy(np.concatenate(labels)[self._order]),
            document_ids=None,
            task=self.tasks[0].name if len(self.tasks) == 1 else MIXTURE,
            length=self.sequence_length,
        )

    def _unseen(self, task: Task, random: np.random.Generator, rows: int) -> Examples:
        examples = task.examples(random, rows, self.sequence_length)
        held_out = self._held_out.digests(task, self.sequence_length)
        for _ in range(_MOST_DRAWS):
            seen = [i for i, row in enumerate(examples.inputs) if _digest(row) in held_out]
            if not seen:
                return examples
            again = task.examples(random, len(seen), self.sequence_length)
            examples.inputs[seen], examples.labels[seen] = again
        raise DataError(
            f"task {task.name!r} has too few different rows of {self.sequence_length} tokens to "
            f"hold {self._held_out.examples} of them out; expected a longer "
            "training.sequence_length or fewer evaluation.examples"
        )

    def state_dict(self) -> dict[str, Any]:
        """The number of the next batch."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the batch that ``state`` was taken before."""
        self.step = int(state["step"])


class MixtureValidation:
    """The same ``examples`` sequences of every task and length at every pass.

    They do not depend on the run's seed: arms and seeds are scored on the same sequences. Longer
    batches have fewer rows, so that a batch never has more tokens than at the shortest length.
    """

    def __init__(
        self, tasks: Sequence[Task], *, examples: int, batch_size: int, lengths: Sequence[int]
    ) -> None:
        self.tasks = tasks
        self.offsets = token_offsets(tasks)
        self.examples = examples
        self.batch_size = batch_size
        self.lengths = list(dict.fromkeys(lengths))
        self._block: tuple[object, Examples] | None = None
        self._digests: dict[tuple[str, int], set[bytes]] = {}

    def digests(self, task: Task, length: int) -> set[bytes]:
        """What identifies the rows of a task that are of this length; made when first asked for."""
        key = (task.name, length)
        if key not in self._digests:
            rows = self._examples_of(task, length, 0, self.examples).inputs
            self._digests[key] = {_digest(row) for row in rows}
        return self._digests[key]

    def batches(self) -> Iterator[Batch]:
        """Task by task, length by length."""
        for task, offset in zip(self.tasks, self.offsets, strict=False):
            for length in self.lengths:
                yield from self._batches_of(task, offset, length)

    def _batches_of(self, task: Task, offset: int, length: int) -> Iterator[Batch]:
        together = max(1, self.batch_size * min(self.lengths) // length)
        for first in range(0, self.examples, together):
            last = min(first + together, self.examples)
            examples = _shifted(self._examples_of(task, length, first, last), offset)
            yield Batch(
                input_ids=torch.from_numpy(examples.inputs),
                labels=torch.from_numpy(examples.labels),
                document_ids=None,
                task=task.name,
                length=length,
            )

    def _examples_of(self, task: Task, length: int, first: int, last: int) -> Examples:
        """Examples ``first`` to ``last`` (exclusive) of one endless sequence, in blocks of fixed
        size: the batch size does not change which examples there are."""
        blocks = range(first // _BLOCK_ROWS, -(-last // _BLOCK_ROWS))
        inputs, labels = zip(*(self._made(task, length, block) for block in blocks), strict=True)
        wanted = slice(first - blocks[0] * _BLOCK_ROWS, last - blocks[0] * _BLOCK_ROWS)
        return Examples(np.concatenate(inputs)[wanted], np.concatenate(labels)[wanted])

    def _made(self, task: Task, length: int, block: int) -> Examples:
        identity = ("validation", task.name, length, block)
        if self._block is None or self._block[0] != identity:
            examples = task.examples(random_stream(*identity), _BLOCK_ROWS, length)
            self._block = (identity, examples)
        return self._block[1]


def _digest(row: NDArray[np.int64]) -> bytes:
    return hashlib.blake2b(row.tobytes(), digest_size=16).digest()


def _shifted(examples: Examples, offset: int) -> Examples:
    labels = np.where(examples.labels == IGNORED, IGNORED, examples.labels + offset)
    return Examples(examples.inputs + offset, labels)


def _interleaved(rows: Sequence[int]) -> NDArray[np.int64]:
    """Order that spreads every task's rows evenly, so that a micro-batch has rows of all."""
    places = np.concatenate([(np.arange(count) + 0.5) / count for count in rows])
    return np.argsort(places, kind="stable")
