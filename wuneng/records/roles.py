"""Which arm of a run is meant where none is named: the one to look at, and what it is held against.

The run's own recipe says: the arm to look at is the first that trains with state heads; the one it
is compared with is plain attention (``mha``) or, of an upgrade, the source as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wuneng.errors import ModelError, RecipeError
from wuneng.records.runs import RunDirectory

__all__ = ["ArmRoles", "arm_names", "arm_roles", "is_of_several"]

_PLAIN = "mha"


@dataclass(frozen=True)
class ArmRoles:
    """Names of arms; no baseline where the run has only one kind of arm."""

    main: str
    baseline: str | None


def arm_names(run: RunDirectory) -> list[str]:
    """The arms of a run in the order of its recipe. ModelError when the recipe is not readable."""
    return list(_arms(run)[1])


def arm_roles(run: RunDirectory) -> ArmRoles:
    """Which arm is looked at, and which it is compared with. ModelError as `arm_names`."""
    recipe, arms = _arms(run)
    model = recipe.get("model")
    shared = model.get("num_state_heads", 1) if isinstance(model, Mapping) else 1
    untouched = [name for name, arm in arms.items() if arm.get("train") == "none"]
    trained = [name for name in arms if name not in untouched and not arms[name].get("lora")]
    with_state = [name for name in trained if name != _PLAIN and _state_heads(arms[name], shared)]
    main = next(iter([*with_state, *trained, *arms]))
    plain = [_PLAIN] if _PLAIN in arms else []
    others = [name for name in trained if not _state_heads(arms[name], shared)]
    baseline = next((name for name in [*plain, *untouched, *others] if name != main), None)
    return ArmRoles(main, baseline)


def is_of_several(run: RunDirectory) -> bool:
    """Whether it is a sweep or study, with runs below it. ModelError as `arm_names`."""
    recipe, _ = _arms(run)
    return bool(recipe.get("sweep") or recipe.get("study"))


def _arms(run: RunDirectory) -> tuple[Mapping[str, Any], dict[str, Mapping[str, Any]]]:
    """The recipe, and the settings of each arm."""
    # Through the recipe's own reader, which has bounds; only where a run is looked at.
    from wuneng.recipe.source import read_yaml

    try:
        recipe = read_yaml(run.recipe).data
    except RecipeError as error:
        raise ModelError(f"{run.recipe} does not name the arms of a run: {error}") from None
    given = recipe.get("arms") if isinstance(recipe, dict) else None
    names = list(given) if isinstance(given, dict | list) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise ModelError(f"{run.recipe} does not name the arms of a run: there are none")
    arms = {name: given[name] if isinstance(given, dict) else None for name in names}
    return recipe, {name: arm if isinstance(arm, Mapping) else {} for name, arm in arms.items()}


def _state_heads(arm: Mapping[str, Any], shared: Any) -> Any:
    model = arm.get("model")
    return model.get("num_state_heads", shared) if isinstance(model, Mapping) else shared
