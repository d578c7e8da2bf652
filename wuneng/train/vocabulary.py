"""The token ids of a recipe, and the tokenizer that makes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from wuneng.distributed.processes import ALONE, Processes
from wuneng.recipe import (
    SOURCE_TOKENIZER,
    EndEvaluation,
    SyntheticData,
    TextData,
    TrainedTokenizer,
    Training,
)
from wuneng.train.starting_point import Sources, source_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["TextUse", "Vocabulary", "task_vocabulary", "text_vocabulary"]

#: What is wanted of a recipe's text: nothing, that its files are there, or what is learned from it.
TextUse = Literal["none", "present", "read"]

_SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id")


@dataclass(frozen=True)
class Vocabulary:
    """What the data needs of a model's embedding."""

    size: int
    """Token ids are below it."""
    tokenizer: PreTrainedTokenizerFast | None = None
    """None: the tokens are no text, or the tokenizer was not needed for its size."""

    @property
    def special_ids(self) -> dict[str, int | None]:
        """``pad_token_id``, ``bos_token_id`` and ``eos_token_id``, as a configuration has them."""
        return {name: getattr(self.tokenizer, name, None) for name in _SPECIAL}


def task_vocabulary(
    data: SyntheticData, training: Training, evaluation: EndEvaluation, seed: int
) -> Vocabulary:
    """That of synthetic tasks. DataError when a task does not fit the training settings."""
    from wuneng.synthetic import prepare_synthetic

    steps = training.total_steps
    return Vocabulary(prepare_synthetic(data, training, evaluation, seed, steps).vocab_size)


def text_vocabulary(
    data: TextData,
    source: str | None,
    sources: Sources,
    *,
    stated: int | None = None,
    text: TextUse = "present",
    processes: Processes = ALONE,
    learned: Path | None = None,
) -> Vocabulary:
    """That of text.

    Args:
        source: the model that the recipe starts from, whose tokenizer may be asked for.
        stated: ``model.vocab_size``. A tokenizer that would have to be fetched is then not needed.
        text: ``read``: the tokenizer itself is wanted, learned from the text if ``data`` says so;
            else its size is enough.
        processes: that all ask for it at the same time.
        learned: where one is kept that is learned from a stream.

    Raises:
        DataError: files that have to be there, or the tokenizer, are missing.
        ModelError: there is no usable model at ``source``.
        DiskError: a learned tokenizer cannot be kept.
    """
    if text != "none":
        _find_files(data)
    if text != "read":
        size = data.tokenizer.train_bpe if isinstance(data.tokenizer, TrainedTokenizer) else stated
        if size is not None:
            return Vocabulary(size)
    from wuneng.model.token_ids import vocabulary_size

    if data.tokenizer == SOURCE_TOKENIZER and source is not None:
        tokenizer = source_tokenizer(source, sources)
    else:
        from wuneng.data.prepare import text_tokenizer

        tokenizer = text_tokenizer(data, processes, learned)
    return Vocabulary(vocabulary_size(tokenizer), tokenizer)


def _find_files(data: TextData) -> None:
    from wuneng.data.files import find_files

    for field, files in data.named_files():
        find_files(files, field)
