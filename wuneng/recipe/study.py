"""A comparison planned before it is run: the fields of ``study:``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from wuneng.errors import InputError
from wuneng.recipe.model import ModelSettings
from wuneng.recipe.settings import Settings
from wuneng.recipe.sizes import LARGEST_COUNT, PositiveCount, Real, parse_real, parse_size
from wuneng.recipe.source import FieldPath
from wuneng.recipe.training import OptimizerSettings

__all__ = ["Ladder", "Study", "study_problems", "tuned_field"]

_PERCENT = re.compile(r"\s*([0-9.]+)\s*%\s*")
_TUNED = re.compile(r"(model|training)\.([a-z0-9_]+)")


def _share(value: Any) -> Any:
    """``0.5%``, or the number 0.005."""
    match = _PERCENT.fullmatch(value) if isinstance(value, str) else None
    try:
        share = parse_real(match[1]) / 100 if match else parse_real(value)
    except InputError:
        share = -1.0
    if not 0 < share < 1:
        raise PydanticCustomError(
            "share", "{expected}", {"expected": "a share between 0 and 1, as in 0.5% or 0.005"}
        )
    return share


def _parameters(value: Any) -> Any:
    """A number of parameters that is aimed at, so that 0.3M need not be a whole number."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*([kKmMgG])\s*", value) if isinstance(value, str) else None
    try:
        if match:
            return round(parse_real(match[1]) * parse_size(f"1{match[2]}"))
        return parse_size(value)
    except InputError:
        raise PydanticCustomError(
            "parameters", "{expected}", {"expected": "a number of parameters, as in 0.3M"}
        ) from None


ParameterCount = Annotated[int, BeforeValidator(_parameters), Ge(1000), Le(LARGEST_COUNT)]
PositiveReal = Annotated[Real, Gt(0.0)]


class Ladder(Settings):
    """Sizes and lengths of training at which the arms are compared."""

    sizes: Annotated[list[ParameterCount], Field(min_length=1)]
    """Parameters of the first arm; its width and depth grow together until it has them."""
    tokens_per_parameter: Annotated[list[PositiveReal], Field(min_length=1)]
    """Training tokens of every arm for each parameter of the first."""


class Study(Settings):
    """What decides, how well it has to be known, and how arms are made ready for it."""

    primary: str
    """The one figure that decides, as ``text/bits_per_byte``; all others are exploratory."""
    smallest_effect: Annotated[float, BeforeValidator(_share)] = 0.005
    """A smaller difference does not matter: a share of the first arm's figure, as ``0.5%``."""
    seed_spread: Annotated[float, BeforeValidator(_share)] = 0.0035
    """Only for planning, until seeds have shown it: by what share a figure moves from seed to seed
    (one standard deviation)."""
    tune: dict[str, Annotated[list[Any], Field(min_length=2)]] = Field(default_factory=dict)
    """Values to try in every arm, by the field of ``training`` or ``model``. Each arm then has its
    best; a best value at the edge of the grid extends it."""
    tuning_seeds: PositiveCount = 1
    """Seeds of each tried value."""
    seeds: Annotated[PositiveCount, Field(ge=2)] = 5
    """Seeds of each arm once it is tuned: fresh ones, scored on what tuning never saw."""
    ladder: Ladder | None = None
    """Sizes and lengths of training; default the recipe's own."""
    match: Literal["parameters", "flops", "state_bytes", "time"] = "parameters"
    """What the other arms have as much of as the first (see ``arms.NAME.match``); an arm's own
    ``match`` goes before. ``time``: feed-forward layers until a training step takes as long, as
    measured before the plan is written, on the machine that starts the study."""


def tuned_field(path: str) -> tuple[str, str] | None:
    """Section and field that ``tune`` names, where an arm may have that field for itself."""
    match = _TUNED.fullmatch(path)
    if match is None:
        return None
    settings: type[Settings] = ModelSettings if match[1] == "model" else OptimizerSettings
    return (match[1], match[2]) if match[2] in settings.model_fields else None


def study_problems(study: Study, seed: Any) -> Iterator[tuple[FieldPath, str]]:
    """What contradicts itself in ``study:``; paths start at its fields."""
    for path, values in study.tune.items():
        if tuned_field(path) is None:
            yield (
                ("tune", path),
                "expected a field of model or an optimiser field of training, which an arm may "
                "have for itself, as training.learning_rate",
            )
        elif len({repr(value) for value in values}) < len(values):
            yield ("tune", path), f"expected different values, got {values}"
    if isinstance(seed, list):
        yield (), (f"expected one seed, from which the study's own are counted, got seed: {seed}")
