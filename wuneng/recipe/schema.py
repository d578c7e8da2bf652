"""A whole recipe: the model, the arms that are compared, the data, the training."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from wuneng.errors import InputError, nearest
from wuneng.recipe.arms import DEFAULT_ARMS, Arm, resolve_model
from wuneng.recipe.consistency import Problem, data_problems
from wuneng.recipe.data import Data, TextData
from wuneng.recipe.model import ModelSettings
from wuneng.recipe.parallel import Parallel
from wuneng.recipe.resolve import SHARED_STARTS, arm_problems, arm_training, resolve_arms
from wuneng.recipe.settings import Settings
from wuneng.recipe.sizes import LARGEST_COUNT, Count
from wuneng.recipe.source import dotted
from wuneng.recipe.stages import Stage
from wuneng.recipe.start_rules import upgrade_problems
from wuneng.recipe.state_rules import state_problems
from wuneng.recipe.study import Study, study_problems
from wuneng.recipe.training import EndEvaluation, Training
from wuneng.recipe.upgrade import Distillation, Name, TrainChoice

__all__ = ["SOURCE_TOKENIZER", "Recipe"]

#: ``data.tokenizer`` of a recipe that takes the tokenizer of the model it starts from.
SOURCE_TOKENIZER = "source"

#: With what is put before and behind it, a name must fit the 255 bytes of a file system.
LONGEST_NAME = 100
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?|mps")
#: Names that a run directory uses for something else.
_RESERVED = (
    *("latest", "recipe.yaml", "environment.json", "results.json", "checksums.json"),
    *("report.html", "learned-tokenizer"),
)


#: More cannot be told apart in a table, and planning them would take minutes.
_MOST_ARMS = 100
#: Fields that a sweep cannot vary.
_OF_THE_WHOLE = ("name", "description", "device", "parallel", "loggers", "seed")


def _directory_name(value: Any) -> Any:
    named = isinstance(value, str) and len(value) <= LONGEST_NAME and _NAME.fullmatch(value)
    if not named or value in _RESERVED:
        raise PydanticCustomError(
            "name",
            "{expected}",
            {
                "expected": "a name of letters, digits, '.', '_' and '-', at most "
                f"{LONGEST_NAME} characters (it names a directory)"
            },
        )
    return value


def _device_name(value: Any) -> Any:
    if not isinstance(value, str) or not _DEVICE.fullmatch(value):
        raise PydanticCustomError(
            "device", "{expected}", {"expected": "auto, cpu, cuda, cuda:N or mps"}
        )
    return value


def _seed_list(value: Any) -> Any:
    seeds = value if isinstance(value, list) else [value]
    whole = all(
        isinstance(s, int) and not isinstance(s, bool) and 0 <= s <= LARGEST_COUNT for s in seeds
    )
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise PydanticCustomError(
            "seed",
            "{expected}",
            {"expected": "a whole number from 0, or a list of different ones, up to 2**62"},
        )
    return value


def _named_arms(value: Any) -> Any:
    """A list of arm names as the mapping it stands for; an arm left empty as no changes."""
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return {name: {} for name in value}
    if isinstance(value, dict):
        return {name: {} if arm is None else arm for name, arm in value.items()}
    return value


ArmName = Annotated[str, BeforeValidator(_directory_name)]


class Recipe(Settings):
    """A comparison: every arm is trained on the same batches from the same seed, in turn."""

    name: Annotated[str, BeforeValidator(_directory_name)] = "run"
    """Names the run directory; default the recipe file's name."""
    description: str = ""
    """One sentence for people."""
    seed: Annotated[Count | list[Count], BeforeValidator(_seed_list)] = 0
    """Seed of everything random, or several to train every arm once from each."""
    init_from: Name | None = None
    """A model to start from: a directory, run or hub name of a WuNeng, or of a Llama or another
    family that converts. Its sizes hold; of ``model`` only what concerns state and middle heads is
    used."""
    train: TrainChoice = "all"
    """With ``init_from``: ``all``, ``new`` (state and middle heads, or LoRA's adapters),
    ``new+lora`` (both), ``none`` (scored as it is), or regular expressions searched for in
    parameter names."""
    distill: Distillation | None = None
    """Learn from a teacher's logits instead of, or beside, the text."""
    stages: list[Stage] | None = None
    """With ``init_from``: what is learnt from, one after another (align, distill, tune), in place
    of the text alone."""
    model: ModelSettings = ModelSettings()
    """The architecture that the arms change."""
    arms: Annotated[
        dict[ArmName, Arm],
        Field(min_length=1, max_length=_MOST_ARMS),
        BeforeValidator(_named_arms),
    ] = Field(default_factory=lambda: {name: Arm() for name in DEFAULT_ARMS})
    """The arms by name, or a list of built-in names; the first is the reference."""
    data: Data
    """Where tokens come from."""
    training: Training
    """The run that every arm goes through."""
    evaluation: EndEvaluation = EndEvaluation()
    """What is measured at the end."""
    device: Annotated[str, BeforeValidator(_device_name)] = "auto"
    """``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``."""
    parallel: Parallel = Parallel()
    """How several processes share the training of an arm."""
    loggers: list[Literal["tensorboard", "wandb", "csv"]] = Field(default_factory=list)
    """Where metrics go beside metrics.jsonl."""
    sweep: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(default_factory=dict)
    """Values to try, by the path of the field as ``--set`` takes it: every combination is trained,
    in every arm. ``--set path=a,b,c`` says the same of a field that takes no text and no list."""
    study: Study | None = None
    """Plan the comparison first, tune every arm alike, then compare from fresh seeds."""

    @property
    def seeds(self) -> list[int]:
        """The seeds, also where there is only one."""
        return self.seed if isinstance(self.seed, list) else [self.seed]

    @property
    def reference_arm(self) -> str:
        """The first arm, which ``match`` aims at."""
        return next(iter(self.arms))

    def arm_model(self, name: str) -> ModelSettings:
        """The complete architecture of an arm, before ``match`` sizes it."""
        return self._arm(name).model

    def arm_training(self, name: str) -> Training:
        """The complete training settings of an arm."""
        return arm_training(self.training, self._arm(name))

    @property
    def source(self) -> str | None:
        """The model that the first arm with one starts from; its tokenizer is the source's."""
        return next((arm.init_from for arm in self.arms.values() if arm.init_from), None)

    @property
    def names_models(self) -> bool:
        """Whether an arm starts or learns from a model that has to be found."""
        return self.source is not None or any(arm.distill for arm in self.arms.values())

    def _arm(self, name: str) -> Arm:
        if name not in self.arms:
            arms = ", ".join(self.arms)
            raise InputError(f"no arm '{name}' in {self.name}: {arms}.{nearest(name, self.arms)}")
        return self.arms[name]

    @model_validator(mode="after")
    def _resolved(self) -> Recipe:
        """Complete the model and every arm, then refuse what contradicts itself."""
        shared = {name: getattr(self, name) for name in SHARED_STARTS}
        resolved = resolve_arms(self.model, self.training, self.arms, shared)
        beside_models = any(arm.init_from for arm in resolved.values())
        problems = list(arm_problems(self.model, self.training, self.arms, resolved))
        problems += upgrade_problems(self.arms, resolved, self.training.total_steps)
        problems += state_problems(resolved, self.training, self.evaluation)
        problems += [(("data", *path), text) for path, text in data_problems(self.data)]
        problems += self._plan_problems()
        problems += self._tokenizer_problems(beside_models)
        if problems:
            text = "; ".join(f"{dotted(path)}: {message}" for path, message in problems)
            raise PydanticCustomError(
                "contradiction", "{text}", {"text": text, "problems": problems}
            )
        own = self.model.model_dump(exclude_unset=True)
        self.model = resolve_model({}, own, loaded=beside_models)
        self.arms = resolved
        return self

    @property
    def is_single(self) -> bool:
        """Whether it states one run; a sweep or a study states several."""
        return not self.sweep and self.study is None

    def _plan_problems(self) -> Iterator[Problem]:
        for path in self.sweep:
            if path.partition(".")[0] in (*_OF_THE_WHOLE, "sweep", "study"):
                yield ("sweep", path), "expected the path of a field that changes a run"
        if self.study is None:
            return
        if self.sweep:
            yield ("sweep",), "expected none beside study, which has its own: study.tune"
        yield from (
            (("study", *path), text) for path, text in study_problems(self.study, self.seed)
        )
        if self.study.ladder is not None and (self.init_from or self.source):
            yield (
                ("study", "ladder"),
                "expected none where an arm has init_from: the model that it starts from has the "
                "size that it has",
            )

    def _tokenizer_problems(self, has_source: bool) -> list[Problem]:
        """Take the source's tokenizer where none is named; refuse it where there is no source."""
        data = self.data
        if not isinstance(data, TextData):
            return []
        if has_source and "tokenizer" not in data.model_fields_set:
            self.data = data.model_copy(update={"tokenizer": SOURCE_TOKENIZER})
        if data.tokenizer == SOURCE_TOKENIZER and not has_source:
            return [(("data", "tokenizer"), "source is the tokenizer of init_from, not given here")]
        return []
