"""Where tokens come from: the fields of ``data:`` in a recipe, for text and for synthetic tasks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from annotated_types import MinLen
from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

from wuneng.recipe.settings import Settings
from wuneng.recipe.sizes import Fraction, PositiveCount, Real, Vocabulary
from wuneng.recipe.task_settings import Name, Task

__all__ = [
    "Data",
    "HubDataset",
    "MixturePart",
    "QuestionFields",
    "SyntheticData",
    "TextData",
    "TrainedTokenizer",
    "part_names",
]


def _kind_of(value: Any) -> str:
    """Which form of a field that may be text, a list or a mapping the user chose."""
    return "<mapping>" if isinstance(value, dict | Settings) else "<plain>"


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class HubDataset(Settings):
    """A data set read through ``datasets``: a name on the hub, or a local path or script kind."""

    dataset: Name
    """Name or local directory, as ``datasets.load_dataset`` takes it."""
    config: Name | None = None
    """Configuration of the data set, where it has several."""
    split: Name = "train"
    """Split to read."""
    text_field: Name = "text"
    """Column that holds the text of a document."""
    streaming: bool = False
    """Read over the network while training instead of downloading first. Where several processes
    train together, each reads all of it and trains on its rows."""
    shuffle_block: PositiveCount = 1
    """With ``streaming``: documents that are read ahead and shuffled together, block by block; 1
    leaves them in the data set's order."""

    @model_validator(mode="after")
    def _shuffles_a_stream(self) -> HubDataset:
        if self.shuffle_block > 1 and not self.streaming:
            raise PydanticCustomError(
                "shuffle_block",
                "{expected}",
                {"expected": "shuffle_block 1 without streaming: what is stored is shuffled whole"},
            )
        return self


class TrainedTokenizer(Settings):
    """A tokenizer that is trained on the training text."""

    train_bpe: Annotated[Vocabulary, Field(ge=257)]
    """Vocabulary size of a byte-level BPE: 256 bytes, the end of a document, and merges."""


PartName = Annotated[Name, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$")]
FileList = Annotated[list[Name], MinLen(1), BeforeValidator(_as_list)]
TextSource = Annotated[
    Annotated[FileList, Tag("<plain>")] | Annotated[HubDataset, Tag("<mapping>")],
    Discriminator(_kind_of),
]


class MixturePart(Settings):
    """One of several sources of training text, and the share of it."""

    path: TextSource
    """What ``data.train`` may be: files, globs, directories, or ``{dataset: NAME}``."""
    weight: Annotated[Real, Field(ge=0.0)] = 1.0
    """Share of the tokens that are trained on, relative to the other weights; 0: its held-out text
    is scored, and none of it is trained on."""
    name: PartName | None = None
    """What the source is called; default the name of its file, directory or data set."""


def _kind_of_training(value: Any) -> str:
    """As ``_kind_of``, where a list may be of mappings."""
    first = value[0] if isinstance(value, list) and value else None
    return "<mixture>" if isinstance(first, dict | Settings) else _kind_of(value)


TrainingSource = Annotated[
    Annotated[FileList, Tag("<plain>")]
    | Annotated[HubDataset, Tag("<mapping>")]
    | Annotated[list[MixturePart], Tag("<mixture>")],
    Discriminator(_kind_of_training),
]
TokenizerChoice = Annotated[
    Annotated[Name, Tag("<plain>")] | Annotated[TrainedTokenizer, Tag("<mapping>")],
    Discriminator(_kind_of),
]


def part_names(parts: list[MixturePart]) -> list[str]:
    """What each source of a mixture is called: no two alike."""
    names: list[str] = []
    for part in parts:
        first = part.path.dataset if isinstance(part.path, HubDataset) else part.path[0]
        stem = first.rstrip("/").rpartition("/")[2].partition(".")[0]
        name = part.name or re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-") or "source"
        alike = sum(name in (known, known.rpartition("-")[0]) for known in names)
        names.append(f"{name}-{alike + 1}" if alike else name)
    return names


class QuestionFields(Settings):
    """Fields of .jsonl rows that hold questions, of which only the answers are learned."""

    question: Name = "question"
    """Field that holds the question."""
    answer: Name = "answer"
    """Field that holds the answer: text, or with ``choices`` also the number of the right one."""
    context: Name | None = "context"
    """Field that holds what the question is about; rows may lack it."""
    choices: Name | None = "choices"
    """Field that holds a list of all answers to choose from; rows may lack it."""


class TextData(Settings):
    """Documents of text, tokenised, and packed to the training length."""

    kind: Literal["text"] = "text"
    """``text``."""
    train: TrainingSource
    """Files, globs and directories (.txt .md .py .jsonl .jsonl.gz .parquet), the word ``stdlib``
    for Python's own library sources, URLs (``s3://``, ``https://``, ...) that are read while
    training, or ``{dataset: NAME}``; a mixture of several as a list of
    ``{path: ..., weight: ...}``."""
    validation: TextSource | None = None
    """The same for validation; default a fraction of the training documents."""
    validation_fraction: Annotated[Fraction, Field(gt=0.0, lt=1.0)] = 0.05
    """Share of the documents that is held out when ``validation`` is left out."""
    validation_part: Literal["all", "tuning", "final"] = "all"
    """Which held-out documents are scored: all, or one of two halves of them. A study tunes on the
    one and compares on the other."""
    tokenizer: TokenizerChoice = "bytes"
    """``bytes``, a tokenizer's directory or name, ``{train_bpe: V}``, or ``source``: that of
    ``init_from``, and the default where there is one."""
    pack_documents: bool = True
    """Keep attention and state within a document; false lets them cross its end."""
    text_field: Name = "text"
    """Field of a .jsonl or column of a .parquet file that holds the text."""
    questions: QuestionFields | None = None
    """Read questions from .jsonl files instead of text, and train on their answers alone;
    ``{}`` for the usual names of their fields."""
    max_documents: PositiveCount | None = None
    """Read at most this many documents of each source."""
    workers: PositiveCount | None = None
    """Threads that tokenise text before it is trained on; default one for each core. The tokens
    do not depend on it."""
    cache_dir: Name | None = None
    """Tokenised text goes here; default $WUNENG_CACHE, else the user's cache
    (``~/.cache/wuneng``); `wuneng cache` lists it."""

    @property
    def mixture(self) -> list[MixturePart] | None:
        """The parts of ``train`` where it is a mixture."""
        if not isinstance(self.train, list):
            return None
        return [part for part in self.train if isinstance(part, MixturePart)] or None

    def named_files(self) -> Iterator[tuple[str, list[str]]]:
        """Every field that names files, globs and directories, and what it names."""
        fields: list[tuple[str, Any]] = [("data.train", self.train)]
        if self.mixture:
            fields = [(f"data.train.{i}.path", part.path) for i, part in enumerate(self.mixture)]
        for field, found in (*fields, ("data.validation", self.validation)):
            if isinstance(found, list) and not all("://" in source for source in found):
                yield field, found


class SyntheticData(Settings):
    """Tasks with a known answer, generated from the seed while training."""

    kind: Literal["synthetic"] = "synthetic"
    """``synthetic``."""
    tasks: Annotated[list[Task], Field(min_length=1)]
    """The tasks that a batch is made of."""


def _data_of(value: Any) -> str | None:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return f"<{kind}>" if kind in ("text", "synthetic") else None


Data = Annotated[
    Annotated[TextData, Tag("<text>")] | Annotated[SyntheticData, Tag("<synthetic>")],
    Discriminator(
        _data_of,
        custom_error_type="choice",
        custom_error_message="a mapping with kind: text or kind: synthetic",
    ),
]
