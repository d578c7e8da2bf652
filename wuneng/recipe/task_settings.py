"""The tasks of ``data.tasks`` that are generated from the seed: what each takes, and what in it
contradicts itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from pydantic import BeforeValidator, Discriminator, Field, StringConstraints, Tag
from pydantic_core import PydanticCustomError

from wuneng.recipe.settings import Settings
from wuneng.recipe.sizes import Count, Fraction, Length, PositiveCount, Real

__all__ = [
    "AdditionTask",
    "BoxesTask",
    "BracketsTask",
    "ChainTask",
    "ComposeTask",
    "CurriculumStage",
    "FunctionsTask",
    "GroupTask",
    "InductionTask",
    "Name",
    "NeedleTask",
    "RecallTask",
    "SelectiveCopyTask",
    "StateTrackingTask",
    "Task",
    "TaskSettings",
]

_GROUP = re.compile(r"parity|s3|s5|mod_(?P<modulus>[2-9]|[1-9][0-9]{1,3})")
_LARGEST_GROUP = 1024
Name = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
Symbols = Annotated[PositiveCount, Le(2**16)]
FewSymbols = Annotated[PositiveCount, Ge(2), Le(1024)]


class TaskSettings(Settings):
    """What every task takes."""

    task: str
    """Which task."""
    name: Name | None = None
    """What its figures are called; default the task's own name."""
    weight: Annotated[Real, Field(gt=0.0)] = 1.0
    """Share of the rows of a batch, relative to the other tasks'."""

    @property
    def label(self) -> str:
        """The name that its figures carry."""
        return self.name or self.task

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """(field, what was expected and what came) of fields that do not go together."""
        yield from ()


class RecallTask(TaskSettings):
    """Multi-query associative recall: keys and values, then keys to be answered."""

    task: Literal["recall"] = "recall"
    """``recall``."""
    name: Name = "recall"
    """What its figures are called."""
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
    distinct_values: bool = False
    """Give no value to two keys; with as many values as pairs, all of them occur in every sequence,
    and to know which occur tells nothing."""

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """More pairs than keys, more rewrites than pairs, more pairs than distinct values."""
        if self.pairs > self.keys:
            yield "pairs", f"expected at most as many as keys ({self.keys}), got {self.pairs}"
        if self.rewrites > self.pairs:
            pairs = f"pairs ({self.pairs})"
            yield "rewrites", f"expected at most as many as {pairs}, got {self.rewrites}"
        if self.distinct_values and self.rewrites:
            yield "distinct_values", "expected false where there are rewrites, got true"
        if self.distinct_values and self.values < self.pairs:
            yield "values", f"expected at least as many as pairs ({self.pairs}), got {self.values}"


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


class GroupTask(TaskSettings):
    """What tasks take that keep track of a product in a finite group."""

    group: Annotated[str, BeforeValidator(_known_group)] = "parity"
    """``parity``, ``mod_N`` (a counter), or the permutations ``s3`` and ``s5``."""

    @property
    def modulus(self) -> int | None:
        """N of ``mod_N``, 2 for parity, None for permutations."""
        match = _GROUP.fullmatch(self.group)
        if self.group == "parity":
            return 2
        return int(match["modulus"]) if match and match["modulus"] else None


class StateTrackingTask(GroupTask):
    """Words of a finite group: after every element, the product so far is asked for."""

    task: Literal["state_tracking"] = "state_tracking"
    """``state_tracking``."""
    name: Name | None = None
    """What its figures are called; default the group's name."""
    curriculum: bool | list[CurriculumStage] = False
    """``true``: score the first 8 positions, then more, then all; or a list of stages."""

    @property
    def label(self) -> str:
        """The name that its figures carry."""
        return self.name or self.group

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """Stages that do not end one after the other."""
        ends = (
            [stage.until for stage in self.curriculum] if isinstance(self.curriculum, list) else []
        )
        if ends != sorted(set(ends)):
            yield "curriculum", f"expected rising values of until, got {ends}"


class ComposeTask(GroupTask):
    """State and recall at once: each group element is given a value, then a word is read, and after
    every element the value of the product so far is asked for."""

    task: Literal["compose"] = "compose"
    """``compose``."""
    curriculum: bool = False
    """``true``: score the first 8 positions of the word, then more, then all."""


class BoxesTask(TaskSettings):
    """Boxes that each hold an object and change contents two by two; what is in a box?"""

    task: Literal["boxes"] = "boxes"
    """``boxes``."""
    boxes: FewSymbols = 5
    """Boxes, and as many objects."""
    moves: Symbols | None = None
    """Moves, each with a question after it; default as many as the sequence holds."""


class ChainTask(TaskSettings):
    """Multi-hop lookup: tables of facts, in any order, and a name to follow through all of them."""

    task: Literal["chain"] = "chain"
    """``chain``."""
    hops: Annotated[PositiveCount, Field(le=64)] = 2
    """Tables, each a lookup from one set of names to the next."""
    names: FewSymbols = 8
    """Names of a set; a table says for each which name of the next set follows."""
    queries: Symbols | None = None
    """Names asked for afterwards; default as many as ``names``."""


class BracketsTask(TaskSettings):
    """Bracket words of several types (Dyck languages): which brackets close what is still open?"""

    task: Literal["brackets"] = "brackets"
    """``brackets``."""
    types: FewSymbols = 4
    """Kinds of brackets."""
    depth: FewSymbols = 8
    """Brackets still open at the end, as many of each type."""

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """A depth that the types do not divide, which would make some types likelier answers."""
        if self.depth % self.types:
            yield "depth", f"expected a multiple of types ({self.types}), got {self.depth}"


class SelectiveCopyTask(TaskSettings):
    """Symbols strewn among filler, to be repeated in their order."""

    task: Literal["selective_copy"] = "selective_copy"
    """``selective_copy``."""
    symbols: FewSymbols = 8
    """Symbols; each stands once in a sequence."""


class InductionTask(TaskSettings):
    """A stretch of different symbols, then some of them again: what came after this one?"""

    task: Literal["induction"] = "induction"
    """``induction``."""
    symbols: Annotated[FewSymbols, Field(ge=3)] = 16
    """Symbols; each stands once in the stretch."""
    queries: Symbols = 8
    """Symbols asked for afterwards."""

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """More queries than there are symbols with a successor."""
        if self.queries >= self.symbols:
            yield "queries", f"expected fewer than symbols ({self.symbols}), got {self.queries}"


class NeedleTask(TaskSettings):
    """A key somewhere in a haystack of values: which value stood behind it?"""

    task: Literal["needle"] = "needle"
    """``needle``."""
    needles: Annotated[PositiveCount, Field(le=1024)] = 1
    """Keys, each asked for at the end."""
    values: FewSymbols = 16
    """Different values; the haystack is made of them, each as often."""


class FunctionsTask(TaskSettings):
    """In-context functions: examples of an unknown function of numbers modulo N, and a new one."""

    task: Literal["functions"] = "functions"
    """``functions``."""
    family: Literal["shift", "affine"] = "shift"
    """``shift``: x + b, one example tells it; ``affine``: a x + b, two examples do."""
    modulus: FewSymbols = 13
    """Numbers are counted modulo this; a prime for ``affine``."""
    examples: Symbols = 2
    """Examples before the question; sequences hold as many functions as fit."""

    def contradictions(self) -> Iterator[tuple[str, str]]:
        """Too few examples or numbers, or a modulus under which two examples leave doubts."""
        needed = 2 if self.family == "affine" else 1
        if self.examples < needed:
            yield "examples", f"expected {needed} or more for {self.family}, got {self.examples}"
        if self.examples >= self.modulus:
            yield "examples", f"expected fewer than modulus ({self.modulus}), got {self.examples}"
        if self.family == "affine" and any(self.modulus % n == 0 for n in range(2, self.modulus)):
            yield "modulus", f"expected a prime for affine, got {self.modulus}"


class AdditionTask(TaskSettings):
    """Sums of two numbers, digit by digit, the lowest first: every carry must be kept."""

    task: Literal["addition"] = "addition"
    """``addition``."""
    base: FewSymbols = 10
    """Digits are below this; in base 2 carries run furthest."""
    digits: Symbols | None = 8
    """Digits of each number; null: as many as the sequence holds, in one sum."""
    interleaved: bool = False
    """Digits of both numbers in turn, so that only the carry has to be kept."""


def _task_of(value: Any) -> str | None:
    task = value.get("task") if isinstance(value, dict) else getattr(value, "task", None)
    return f"<{task}>" if task in _NAMES else None


def _checked(value: Any) -> Any:
    """Refuse a task that there is not, with what was written for the nearest name."""
    if _task_of(value) is None:
        written = value.get("task") if isinstance(value, dict) else None
        names = f"{', '.join(_NAMES[:-1])} or {_NAMES[-1]}"
        raise PydanticCustomError(
            "choice",
            "a task with task: {expected}",
            {"expected": names, "written": str(written), "choices": _NAMES},
        )
    return value


Task = Annotated[
    Annotated[RecallTask, Tag("<recall>")]
    | Annotated[StateTrackingTask, Tag("<state_tracking>")]
    | Annotated[ComposeTask, Tag("<compose>")]
    | Annotated[BoxesTask, Tag("<boxes>")]
    | Annotated[ChainTask, Tag("<chain>")]
    | Annotated[BracketsTask, Tag("<brackets>")]
    | Annotated[SelectiveCopyTask, Tag("<selective_copy>")]
    | Annotated[InductionTask, Tag("<induction>")]
    | Annotated[NeedleTask, Tag("<needle>")]
    | Annotated[FunctionsTask, Tag("<functions>")]
    | Annotated[AdditionTask, Tag("<addition>")],
    Discriminator(_task_of),
    BeforeValidator(_checked),
]
_NAMES = (
    *("recall", "state_tracking", "compose", "boxes", "chain", "brackets", "selective_copy"),
    *("induction", "needle", "functions", "addition"),
)
