"""Recipes that earlier versions wrote into run directories mean what they meant.

Such a file states every field that there was (:func:`wuneng.recipe.dump.dump_recipe`), which is
how it is told from one that a person wrote, for whom a field left out has today's default.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from wuneng.default_wiring import MIDDLE_WIRING
from wuneng.older_files import BEFORE, gate_before

__all__ = ["complete_older_recipe"]

#: Among the fields of the first version that wrote recipes; nobody writes all of them by hand.
_WRITTEN_TRAINING = {
    *("learning_rate", "learning_rates", "min_learning_rate_ratio", "schedule", "warmup_steps"),
    *("decay_fraction", "weight_decay", "betas", "eps", "clip", "steps", "tokens"),
    *("sequence_length", "batch_size", "micro_batch_size", "precision", "compile", "num_threads"),
    *("log_every", "validate_every", "checkpoint_every", "keep_checkpoints"),
}
_WRITTEN = {"description", "seed", "init_from", "train", "distill", "evaluation", "loggers"}
_GATE = ("state_output_gate", "state_gate_sigmoid")
#: What those versions did where ``model`` holds no more than what the user set: beside arms that
#: start from a model, whose fields would otherwise be demanded of it.
_DEFAULTS_BEFORE: dict[str, Any] = {
    **BEFORE,
    "initializer_range": 0.02,
    "state_branch_init": "normal",
}


def complete_older_recipe(recipe: dict[str, Any]) -> None:
    """Add to a stored recipe, in place, the fields that it is too old to state."""
    model, training = recipe.get("model"), recipe.get("training")
    if not isinstance(model, dict) or not isinstance(training, dict):
        return
    if not (recipe.keys() >= _WRITTEN and training.keys() >= _WRITTEN_TRAINING):
        return
    is_whole = "snapshot_every" in model and "hidden_act" in model and "preset" in model
    if is_whole and "output_init" not in model:
        for fields in (model, *(fields for _, fields in _arms(recipe))):
            fields.update(BEFORE | fields)
    if is_whole:
        _complete_gates(model, [fields for _, fields in _arms(recipe)])
        return
    for arm, fields in _arms(recipe):
        if not arm.get("init_from", recipe["init_from"]):
            _complete_beside_models(model, fields)


def _complete_gates(model: dict[str, Any], arms: list[dict[str, Any]]) -> None:
    """Today's arms state their gates; an older one what it has otherwise than the model."""
    stated = {**model}
    for fields in arms:
        if gate := gate_before(stated | fields):
            fields.update(gate)
            model.update(gate_before(model))
    for fields in arms:
        if _kind(stated | fields) != "rwkv7":  # what the model left open is the kind's own here
            fields.update({n: stated.get(n) for n in _GATE if n not in fields and n in model})


def _complete_beside_models(model: dict[str, Any], fields: dict[str, Any]) -> None:
    """Of an arm from nothing: today's files state all that it is."""
    if MIDDLE_WIRING.keys() <= {**model, **fields}.keys():
        return
    own = (_DEFAULTS_BEFORE if "output_init" not in fields else {}) | model | fields
    wiring = {n: v for n, v in MIDDLE_WIRING.items() if _kind(own) == "rwkv7" or n not in _GATE}
    fields.update(wiring | own | gate_before(own))


def _kind(fields: dict[str, Any]) -> str:
    return str(fields.get("state_kind", "rwkv7"))


def _arms(recipe: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every arm that is written as one, and its ``model``."""
    arms = recipe.get("arms")
    for arm in arms.values() if isinstance(arms, dict) else ():
        if isinstance(arm, dict) and isinstance(arm.get("model"), dict):
            yield arm, arm["model"]
