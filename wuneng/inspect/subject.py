"""Which text a model is looked at over: a file, or the held-out data of its own run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from wuneng.data.batch import Batch
from wuneng.errors import DataError, TaskError, nearest, shortened
from wuneng.evaluate.loading import LoadedModel
from wuneng.evaluate.perplexity import open_validation
from wuneng.evaluate.synthetic import open_synthetic
from wuneng.foreign.regular import read_regular_text
from wuneng.model.pretrained import encoded
from wuneng.recipe import TextData, load_recipe
from wuneng.recipe.task_settings import StateTrackingTask
from wuneng.records import run_of

__all__ = ["Subject", "subject_of"]


@dataclass(frozen=True)
class Subject:
    """Tokens ``[T]`` int64, where they are from, and what each spells.

    ``ones`` of a row of parity are numbers of tokens, from 1; of other texts there are none.
    """

    tokens: Tensor
    source: str
    spelled: list[str]
    ones: tuple[int, ...] = ()


def subject_of(loaded: LoadedModel, file: Path | None, task: str | None, longest: int) -> Subject:
    """The text that a model is looked at over, read as one stream and cut.

    Args:
        file: UTF-8 text; for a model without a tokenizer token ids, separated by blanks or commas.
            None takes the first row of the held-out data of the model's run.
        task: of a run with synthetic tasks, which one; None is the first.
        longest: tokens at most; no more than the model's context either.

    Raises:
        DataError: the file cannot be read, or holds too little.
        TaskError: no file, and no run that has such data.
    """
    context = getattr(loaded.model.config, "max_position_embeddings", None)
    longest = min(longest, context or longest)
    parity = False
    if file is None:
        tokens, source, parity = _held_out(loaded, task, longest)
    elif task is not None:
        raise TaskError("--task names a task of MODEL's run and --text a file: give one of them")
    else:
        tokens, source = _of_file(loaded, file), str(file)
    if len(tokens) < 2:
        raise DataError(f"{source}: expected two tokens or more, got {len(tokens)}")
    tokens = tokens[:longest]
    ones = _ones(tokens) if parity else ()
    return Subject(tokens, source, _spelled(loaded, tokens), ones)


def _ones(tokens: Tensor) -> tuple[int, ...]:
    """Which tokens of a row of parity are ones: in a mixture of tasks zero has a number as well."""
    low, high = int(tokens.min()), int(tokens.max())
    return () if low == high else tuple((1 + (tokens == high).nonzero()[:, 0]).tolist())


def _of_file(loaded: LoadedModel, file: Path) -> Tensor:
    try:
        text = read_regular_text(file)
    except UnicodeDecodeError as error:
        raise DataError(f"--text {file}: expected UTF-8 text, got {error.reason}") from None
    except OSError as error:
        raise DataError(f"--text {file}: cannot be read: {error.strerror}") from None
    if loaded.tokenizer is not None:
        return torch.tensor(encoded(loaded.tokenizer, text), dtype=torch.long)
    size = loaded.model.get_input_embeddings().weight.shape[0]
    ids = []
    for word in text.replace(",", " ").split():
        if not word.isdecimal() or int(word) >= size:
            raise DataError(
                f"--text {file}: {loaded.label} has no tokenizer, so the file is read as token ids "
                f"from 0 to {size - 1}, got {shortened(repr(word))}"
            )
        ids.append(int(word))
    return torch.tensor(ids, dtype=torch.long)


def _held_out(loaded: LoadedModel, task: str | None, longest: int) -> tuple[Tensor, str, bool]:
    """Tokens, where they are from, and whether they are a row of parity."""
    run = run_of(loaded.path)
    if run is None:
        raise TaskError(
            f"--text: {loaded.path} belongs to no run, so it has no held-out data; name a file"
        )
    recipe = load_recipe(run.recipe)
    if isinstance(recipe.data, TextData):
        if task is not None:
            raise TaskError(f"--task {task}: {run.path} was trained on text and has no tasks")
        text = open_validation(run, by_row=True, limit=1)
        row = next(iter(text.rows(loaded.require_tokenizer(), longest)))
        return row.input_ids[0], f"the held-out text of {run.path}", False
    batches = list(_first_batches(open_synthetic(run, limit=1).data.batches()))
    names = [batch.task for batch in batches]
    if task is not None and task not in names:
        raise TaskError(f"--task: expected {', '.join(names)}, got {task!r}.{nearest(task, names)}")
    [batch] = [batch for batch in batches if batch.task == (task or names[0])]
    parity = any(
        isinstance(one, StateTrackingTask) and (one.label, one.group) == (batch.task, "parity")
        for one in recipe.data.tasks
    )
    return batch.input_ids[0], f"a held-out row of {batch.task}", parity


def _first_batches(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The first batch of each task, at the shortest length."""
    seen: dict[str, Batch] = {}
    for batch in batches:
        if batch.task not in seen or batch.length < seen[batch.task].length:
            seen[batch.task] = batch
    yield from seen.values()


def _spelled(loaded: LoadedModel, tokens: Tensor) -> list[str]:
    ids = tokens.tolist()
    if loaded.tokenizer is None:
        return [str(one) for one in ids]
    return [str(loaded.tokenizer.decode([one])) for one in ids]
