"""A recipe written back as YAML."""

from __future__ import annotations

from typing import Any

import yaml

from wuneng.recipe.arms import built_in
from wuneng.recipe.resolve import SHARED_STARTS
from wuneng.recipe.schema import Recipe

__all__ = ["dump_recipe", "yaml_text"]

#: What an arm alone may say of itself, and what it is where it says nothing.
_OF_ARMS: dict[str, Any] = {"replace": None, "replace_of": "layers", "state": "keep"}


def dump_recipe(recipe: Recipe) -> str:
    """The recipe with every default written out, as YAML that loads to an equal recipe."""
    data = recipe.model_dump()
    if recipe.source is not None:
        # What the recipe leaves to the model it starts from must not turn into a demand.
        data["model"] = recipe.model.model_dump(exclude_unset=True)
    data["arms"] = {name: _arm_changes(recipe, name) for name in recipe.arms}
    for name in ("sweep", "study"):  # most recipes have neither
        if not data[name]:
            del data[name]
    return yaml_text(data)


def yaml_text(data: Any) -> str:
    """Plain data as YAML, in its own order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _arm_changes(recipe: Recipe, name: str) -> dict[str, Any]:
    """What sets an arm apart. Fields that a built-in arm changes are always written, else loading
    would change them again; and all fields of an arm from nothing beside models, where ``model``
    holds no more than what the recipe sets."""
    arm = recipe.arms[name]
    base = recipe.model.model_dump(exclude_unset=recipe.source is not None)
    own = arm.model.model_dump(exclude_unset=arm.init_from is not None)
    pinned = built_in(name, recipe.model)
    shared = recipe.training.model_dump()
    changes = {
        "model": {k: v for k, v in own.items() if k not in base or v != base[k] or k in pinned},
        "match": arm.match,
        "training": {k: v for k, v in arm.training.model_dump().items() if v != shared[k]},
    }
    start = arm.model_dump(include={"lora", *_OF_ARMS, *SHARED_STARTS})
    everyone = {"lora": None, **_OF_ARMS} | recipe.model_dump(include=set(SHARED_STARTS))
    return changes | {k: v for k, v in start.items() if v != everyone[k]}


class _Dumper(yaml.SafeDumper):
    """Writes lists of plain values on one line, and everything in full, without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_list(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.Node:
    plain = all(not isinstance(item, dict | list) for item in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=plain)


_Dumper.add_representer(list, _represent_list)
