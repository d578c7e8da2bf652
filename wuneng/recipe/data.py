"""Where tokens come from: the fields of ``data:`` in a recipe, for text and for synthetic tasks."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, StringConstraints, Tag
from pydantic_core import PydanticCustomError

from wuneng.recipe.settings import Settings
from wuneng.recipe.sizes import Count, Fraction, Length, PositiveCount, Real, Vocabulary

__all__ = [
    "CurriculumStage",
    "Data",
    "HubDataset",
    "RecallTask",
    "StateTrackingTask",
    "SyntheticData",
    "TextData",
    "TrainedTokenizer",
]

_GROUP = re.compile(r"parity|s3|s5|mod_(?P<modulus>[2-9]|[1-9][0-9]{1,3})")
_LARGEST_GROUP = 1024
Name = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
Symbols = Annotated[PositiveCount, Field(le=2**16)]


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
    """Read over the network while training instead of downloading first."""


class TrainedTokenizer(Settings):
    """A tokenizer that is trained on the training text."""

    train_bpe: Annotated[Vocabulary, Field(ge=257)]
    """Vocabulary size of a byte-level BPE: 256 bytes, the end of a document, and merges."""


FileList = Annotated[list[Name], Field(min_length=1), BeforeValidator(_as_list)]
TextSource = Annotated[
    Annotated[FileList, Tag("<plain>")] | Annotated[HubDataset, Tag("<mapping>")],
    Discriminator(_kind_of),
]
TokenizerChoice = Annotated[
    Annotated[Name, Tag("<plain>")] | Annotated[TrainedTokenizer, Tag("<mapping>")],
    Discriminator(_kind_of),
]


class TextData(Settings):
    """Documents of text, tokenised, and packed to the training length."""

    kind: Literal["text"] = "text"
    """``text``."""
    train: TextSource
    """Files, globs and directories (.txt .md .py .jsonl .jsonl.gz .parquet), the word ``stdlib``
    for Python's own library sources, or ``{dataset: NAME}``."""
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
    max_documents: PositiveCount | None = None
    """Read at most this many documents of each source."""
    cache_dir: Name | None = None
    """Tokenised text goes here; default $WUNENG_CACHE, else the user's cache
    (``~/.cache/wuneng``); `wuneng cache` lists it."""


class RecallTask(Settings):
    """Multi-query associative recall: keys and values, then keys to be answered."""

    task: Literal["recall"] = "recall"
    """``recall``."""
    name: Name = "recall"
    """What its figures are called."""
    weight: Annotated[Real, Field(gt=0.0)] = 1.0
    """Share of the rows of a batch, relative to the other tasks'."""
    pairs: Symbols = 8
    """Key-value pairs at the training length."""
    queries: Symbols | None = None
    """Keys asked for afterwards; default as many as pairs."""
    rewrites: Annotated[Count, Field(le=2**16)] = 0
    """Pairs whose key is given a new value before the queries."""
    keys: Symbols = 32
    """Different keys."""
    values: Symbols = 32
    """Different values."""


class CurriculumStage(Settings):
    """Part of training in which only the first positions are scored."""

    until: Annotated[Fraction, Field(gt=0.0)]
    """The stage ends at this fraction of the steps."""
    scored: Length
    """Positions from the start that are scored in it."""


def _known_group(value: Any) -> Any:
    match = _GROUP.fullmatch(value) if isinstance(value, str) else None
    if match is None or int(match["modulus"] or 2) > _LARGEST_GROUP:
        expected = "parity, s3, s5 or mod_N with N of 2 or more"
        if match is not None or str(value).startswith("mod_"):
            expected = f"parity, s3, s5 or mod_N with N from 2 to {_LARGEST_GROUP}"
        raise PydanticCustomError("group", "{expected}", {"expected": expected})
    return value


class StateTrackingTask(Settings):
    """Words of a finite group: after every element, the product so far is asked for."""

    task: Literal["state_tracking"] = "state_tracking"
    """``state_tracking``."""
    group: Annotated[str, BeforeValidator(_known_group)] = "parity"
    """``parity``, ``mod_N`` (a counter), or the permutations ``s3`` and ``s5``."""
    name: Name | None = None
    """What its figures are called; default the group's name."""
    weight: Annotated[Real, Field(gt=0.0)] = 1.0
    """Share of the rows of a batch, relative to the other tasks'."""
    curriculum: bool | list[CurriculumStage] = False
    """``true``: score the first 8 positions, then more, then all; or a list of stages."""

    @property
    def modulus(self) -> int | None:
        """N of ``mod_N``, 2 for parity, None for permutations."""
        match = _GROUP.fullmatch(self.group)
        if self.group == "parity":
            return 2
        return int(match["modulus"]) if match and match["modulus"] else None

    @property
    def label(self) -> str:
        """The name that its figures carry."""
        return self.name or self.group


def _task_of(value: Any) -> str | None:
    task = value.get("task") if isinstance(value, dict) else getattr(value, "task", None)
    return f"<{task}>" if task in ("recall", "state_tracking") else None


Task = Annotated[
    Annotated[RecallTask, Tag("<recall>")] | Annotated[StateTrackingTask, Tag("<state_tracking>")],
    Discriminator(
        _task_of,
        custom_error_type="choice",
        custom_error_message="a task with task: recall or task: state_tracking",
    ),
]


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
